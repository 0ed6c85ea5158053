//! What an expression costs at most. CEL has no budget while it runs, and how much a loop has to do is
//! up to whoever fills the token; so each expression is told beforehand how much input it can afford.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Steps of one evaluation. They take up to 60 ms together, and all sockets of a worker wait for them:
/// fewer would deny tokens with hundreds of groups in a loop within a loop, more would let one token
/// stop its neighbours for longer.
pub const BUDGET: u64 = 1_000_000;

/// Bytes of text that count as much as one value.
const TEXT: usize = 32;

/// The longest that a number or the name of a type becomes as text.
const CONVERTED: u64 = 16;

/// How much one value counts that has so much text of its own: copying and comparing take time by it.
pub fn weight(text: usize) -> u64 {
    1 + (text / TEXT) as u64
}

/// The weight of all input together up to which an expression stays within the budget.
pub fn affordable(root: &IdedExpr) -> u64 {
    let (mut low, mut high) = (0, BUDGET);
    while low < high {
        let middle = low.midpoint(high + 1);
        if total(root, middle) <= BUDGET {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

fn total(root: &IdedExpr, input: u64) -> u64 {
    let of = estimate(root, &Scope::input(input));
    // The outcome is copied, whatever it is.
    of.cost.saturating_add(of.size)
}

/// Upper bounds. They grow with the input, and never slower than it: [`comprehension`] relies on that.
#[derive(Clone, Copy)]
struct Estimate {
    cost: u64,
    /// The weight of the result.
    size: u64,
}

/// How much the variables weigh: the input, and those of the loops around.
struct Scope<'s> {
    input: u64,
    variable: Option<(&'s str, u64)>,
    outer: Option<&'s Scope<'s>>,
}

impl<'s> Scope<'s> {
    fn input(input: u64) -> Self {
        Self { input, variable: None, outer: None }
    }

    fn with(&'s self, name: &'s str, size: u64) -> Self {
        Scope { input: self.input, variable: Some((name, size)), outer: Some(self) }
    }

    fn in_loop(&self, name: &str) -> Option<u64> {
        match self.variable {
            Some((variable, size)) if variable == name => Some(size),
            _ => self.outer.and_then(|outer| outer.in_loop(name)),
        }
    }

    fn size(&self, name: &str) -> u64 {
        let of_input = if matches!(name, "claims" | "params" | "request") { self.input } else { 1 };
        self.in_loop(name).unwrap_or(of_input)
    }
}

fn estimate(node: &IdedExpr, scope: &Scope<'_>) -> Estimate {
    match &node.expr {
        Expr::Unspecified => Estimate { cost: 1, size: 1 },
        Expr::Literal(value) => Estimate { cost: 1, size: literal(value) },
        Expr::Ident(name) => Estimate { cost: 1, size: scope.size(name) },
        Expr::Select(select) => {
            let of = estimate(&select.operand, scope);
            Estimate { cost: of.cost.saturating_add(1), size: if select.test { 1 } else { of.size } }
        }
        Expr::List(list) => made_of(list.elements.iter(), scope),
        Expr::Map(map) => made_of(map.entries.iter().flat_map(|entry| parts(&entry.expr)), scope),
        Expr::Struct(made) => made_of(made.entries.iter().flat_map(|entry| parts(&entry.expr)), scope),
        Expr::Call(call) => self::call(call, scope),
        Expr::Comprehension(loops) => comprehension(loops, scope),
    }
}

fn literal(value: &LiteralValue) -> u64 {
    match value {
        LiteralValue::String(text) => weight(text.inner().len()),
        LiteralValue::Bytes(bytes) => weight(bytes.inner().len()),
        LiteralValue::Boolean(_)
        | LiteralValue::Double(_)
        | LiteralValue::Int(_)
        | LiteralValue::Null
        | LiteralValue::UInt(_) => 1,
    }
}

fn parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// All parts are copied into the result.
fn made_of<'e>(parts: impl Iterator<Item = &'e IdedExpr>, scope: &Scope<'_>) -> Estimate {
    parts.map(|part| estimate(part, scope)).fold(Estimate { cost: 1, size: 1 }, |sum, part| Estimate {
        cost: sum.cost.saturating_add(part.cost).saturating_add(part.size),
        size: sum.size.saturating_add(part.size),
    })
}

fn call(call: &CallExpr, scope: &Scope<'_>) -> Estimate {
    let nodes: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
    let of: Vec<Estimate> = nodes.iter().map(|node| estimate(node, scope)).collect();
    let sizes = of.iter().fold(0, |sum: u64, of| sum.saturating_add(of.size));
    // What is done with the operands, and the weight of the result. Where nothing else is said, all of
    // them are read or, for a failure's message, copied.
    let (work, size) = match (call.func_name.as_str(), of.as_slice()) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT, _) => (0, 1),
        (operators::NOT_STRICTLY_FALSE, _) => (0, 1),
        (operators::CONDITIONAL, [_, yes, no]) => (0, yes.size.max(no.size)),
        (operators::EQUALS | operators::NOT_EQUALS | "startsWith" | "endsWith", [..]) => {
            (compared(&nodes, &of, scope), 1)
        }
        (operators::INDEX, [of, index]) => {
            let known = matches!(nodes.get(1).map(|node| &node.expr), Some(Expr::Literal(_)));
            (if known { index.size } else { sizes }, of.size)
        }
        (
            operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::IN
            | "contains"
            | "size",
            _,
        ) => (sizes, 1),
        (operators::ADD, _) => (sizes, sizes),
        (_, _) => (sizes, sizes.saturating_add(CONVERTED)),
    };
    let cost = of.iter().fold(work.saturating_add(1), |sum, of| sum.saturating_add(of.cost));
    Estimate { cost, size }
}

/// A comparison reads no more than the smaller of both. Which one that is must not depend on sizes, or
/// the sum over a loop would not hold: a literal, else what belongs to a loop, for the loop's elements
/// together are no larger than what it runs over.
fn compared(nodes: &[&IdedExpr], of: &[Estimate], scope: &Scope<'_>) -> u64 {
    let rank = |node: &IdedExpr| match &node.expr {
        Expr::Literal(_) => 0,
        _ if root(node).is_some_and(|name| scope.in_loop(name).is_some()) => 1,
        _ => 2,
    };
    let ranked = nodes.iter().zip(of).map(|(node, of)| (rank(node), of.size));
    ranked.min_by_key(|(rank, _)| *rank).map_or(0, |(_, size)| size)
}

/// The variable at the front of `a.b.c`.
fn root(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Ident(name) => Some(name),
        Expr::Select(select) => root(&select.operand),
        _ => None,
    }
}

/// A loop runs at most once for each unit of weight. Its body's bounds are sums, products and maxima of
/// sizes, so over elements that weigh `s` together they add up to no more than `s` bodies over
/// nothing and one over `s`.
fn comprehension(of: &ComprehensionExpr, scope: &Scope<'_>) -> Estimate {
    let range = estimate(&of.iter_range, scope);
    let body = |size| {
        let scope = scope.with(&of.iter_var, size);
        let (condition, step) = (estimate(&of.loop_cond, &scope), estimate(&of.loop_step, &scope));
        Estimate { cost: condition.cost.saturating_add(step.cost), size: step.size }
    };
    let (nothing, all) = (body(0), body(range.size));
    let sum = |nothing: u64, all: u64| range.size.saturating_mul(nothing).saturating_add(all);
    let cost = sum(nothing.cost, all.cost).saturating_add(range.cost).saturating_add(range.size);
    // `map` and `filter` collect a list; the others keep one value.
    let collects = matches!(of.accu_init.expr, Expr::List(_));
    let size = if collects { sum(nothing.size, all.size).saturating_add(1) } else { 1 };
    Estimate { cost: cost.saturating_add(1), size }
}

pub fn cost_of(root: &IdedExpr, input: u64) -> u64 {
    total(root, input)
}

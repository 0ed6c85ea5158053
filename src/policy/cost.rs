//! What an expression costs at most. CEL has no budget while it runs, and how much a loop has to do is
//! up to whoever fills the token; so before each run an upper bound is taken, by the weight of what the
//! expression is let loose on.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Steps of one evaluation. They take up to 80 ms together, and all sockets of a worker wait for them:
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

/// What the variables weigh: each value with its name and all that is in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weights {
    pub claims: u64,
    pub params: u64,
    pub request: u64,
}

/// Steps that the expression takes at most.
pub fn steps(root: &IdedExpr, input: Weights) -> u64 {
    let of = estimate(root, &Scope { input, variable: None, outer: None });
    // The outcome is copied, whatever it is.
    of.cost.saturating_add(of.size)
}

/// Upper bounds: sums, products and maxima of weights, nothing that grows slower; [`comprehension`]
/// relies on that.
#[derive(Clone, Copy, Default)]
struct Estimate {
    cost: u64,
    /// The weight of the result.
    size: u64,
}

/// The input, and the variables of the loops around.
struct Scope<'s> {
    input: Weights,
    variable: Option<(&'s str, u64)>,
    outer: Option<&'s Scope<'s>>,
}

impl Scope<'_> {
    fn size(&self, name: &str) -> u64 {
        match (self.variable, self.outer) {
            (Some((variable, size)), _) if variable == name => size,
            (_, Some(outer)) => outer.size(name),
            (_, None) => match name {
                "claims" => self.input.claims,
                "params" => self.input.params,
                "request" => self.input.request,
                _ => 1,
            },
        }
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
        Expr::Comprehension(of) => comprehension(of, scope),
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

fn parts(entry: &EntryExpr) -> impl Iterator<Item = &IdedExpr> {
    let (key, value) = match entry {
        EntryExpr::StructField(field) => (None, &field.value),
        EntryExpr::MapEntry(entry) => (Some(&entry.key), &entry.value),
    };
    key.into_iter().chain([value])
}

/// All parts are copied into the result.
fn made_of<'e>(parts: impl Iterator<Item = &'e IdedExpr>, scope: &Scope<'_>) -> Estimate {
    parts.map(|part| estimate(part, scope)).fold(Estimate { cost: 1, size: 1 }, |sum, part| Estimate {
        cost: sum.cost.saturating_add(part.cost).saturating_add(part.size),
        size: sum.size.saturating_add(part.size),
    })
}

fn call(call: &CallExpr, scope: &Scope<'_>) -> Estimate {
    // No function takes more than three.
    let mut of = [Estimate::default(); 3];
    for (of, node) in of.iter_mut().zip(call.target.as_deref().into_iter().chain(&call.args)) {
        *of = estimate(node, scope);
    }
    let [first, second, third] = of;
    let sizes = first.size.saturating_add(second.size).saturating_add(third.size);
    let literal = |at: usize| match call.args.get(at).map(|node| &node.expr) {
        Some(Expr::Literal(value)) => Some(value),
        _ => None,
    };
    // What is done with the operands, and the weight of the result. Where nothing else is said, all of
    // them are read or, for the message of a failure, copied.
    let (work, size) = match call.func_name.as_str() {
        operators::LOGICAL_AND
        | operators::LOGICAL_OR
        | operators::LOGICAL_NOT
        | operators::NOT_STRICTLY_FALSE => (0, 1),
        operators::CONDITIONAL => (0, second.size.max(third.size)),
        operators::INDEX => match literal(1) {
            // No index of anything: the message shows all.
            None | Some(LiteralValue::Double(_)) => (sizes, first.size),
            Some(_) => (second.size, first.size),
        },
        // A number that is compared with something else copies that: each element may.
        operators::IN => (first.size.saturating_mul(second.size), 1),
        operators::EQUALS | operators::NOT_EQUALS => match (literal(0), literal(1)) {
            (Some(LiteralValue::String(_)), _) => (first.size, 1),
            (_, Some(LiteralValue::String(_))) => (second.size, 1),
            (_, _) => (sizes, 1),
        },
        operators::LESS
        | operators::LESS_EQUALS
        | operators::GREATER
        | operators::GREATER_EQUALS
        | "contains"
        | "endsWith"
        | "size"
        | "startsWith" => (sizes, 1),
        operators::ADD => (sizes, sizes),
        _ => (sizes, sizes.saturating_add(CONVERTED)),
    };
    let cost = of.iter().fold(work.saturating_add(1), |sum, of| sum.saturating_add(of.cost));
    Estimate { cost, size }
}

/// A loop runs at most once for each unit of weight. By the shape of the bounds, its bodies over elements
/// that weigh `s` together come to no more than `s` bodies over nothing and one over `s`.
fn comprehension(of: &ComprehensionExpr, scope: &Scope<'_>) -> Estimate {
    let range = estimate(&of.iter_range, scope);
    let body = |size| {
        let scope = Scope { variable: Some((&of.iter_var, size)), outer: Some(scope), ..*scope };
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

#[cfg(test)]
mod tests {
    use super::*;
    use cel::parser::Parser;

    const INPUT: Weights = Weights { claims: 100, params: 4, request: 20 };

    fn steps_of(text: &str, input: Weights) -> u64 {
        steps(&Parser::new().parse(text).unwrap(), input)
    }

    #[test]
    fn a_value_counts_and_so_does_its_text() {
        assert_eq!([0, 31, 32, 3200].map(weight), [1, 1, 2, 101]);
        let (short, long) = ("claims == 'x'", format!("claims == '{}'", "x".repeat(3200)));
        assert_eq!(steps_of(&long, INPUT) - steps_of(short, INPUT), 100);
    }

    #[test]
    fn loops_multiply_and_what_is_known_does_not_count() {
        for (text, most) in [
            ("true", 3),
            ("has(claims.a) && claims.b == 'x'", 20),
            ("params.org in claims.a", 450),
            ("claims.a.exists(x, x == 'x')", 2000),
            ("claims.a.exists(x, x == params.org)", 3000),
            ("claims.a.exists(x, claims.b.exists(y, x == y))", 200_000),
            ("[1, 2].exists(x, claims.b.exists(y, y == params.org && x == 1))", 10_000),
        ] {
            let steps = steps_of(text, INPUT);
            assert!((most / 4..=most).contains(&steps), "{text}: {steps}");
        }
    }

    #[test]
    fn more_input_is_never_cheaper() {
        for text in [
            "claims.a.map(x, x + params.org).exists(y, request.path.contains(y))",
            "claims.a.filter(x, x in claims.b ? params.c < x : [x, claims][1] == {'a': request})",
            "claims.a.exists(x, claims[x].exists_one(y, size(string(y)) == -x))",
        ] {
            let of = |claims, params, request| steps_of(text, Weights { claims, params, request });
            for (less, more) in [(0, 1), (1, 2), (10, 1000), (1000, u64::MAX)] {
                assert!(of(less, 1, 1) < of(more, 1, 1), "{text}");
                assert!(of(1, less, 1) <= of(1, more, 1) && of(1, 1, less) <= of(1, 1, more), "{text}");
            }
        }
    }

    #[test]
    fn what_doubles_and_doubles_is_beyond_any_budget() {
        let text = format!("[claims.a]{} == []", ".map(x, x + x)".repeat(60));
        assert_eq!(steps_of(&text, INPUT), u64::MAX);
    }
}

//! What can be said of an expression before it ever runs: a name that nobody defines would deny
//! everybody, one request at a time.

use std::collections::BTreeSet;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Levels of the parsed expression: the interpreter takes stack for each.
const MAX_DEPTH: usize = 64;

/// Loops within loops: each more multiplies the cost by the size of the claims.
const MAX_LOOPS: usize = 2;

/// They carry tokens, so no rule sees them.
pub const HIDDEN: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "sec-websocket-protocol"];

const MEMBERS: [&str; 6] = ["address", "headers", "host", "method", "origin", "path"];

const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// Name, whether it is called on a value, number of arguments.
const FUNCTIONS: [(&str, bool, usize); 14] = [
    ("bool", false, 1),
    ("bytes", false, 1),
    ("contains", true, 1),
    ("double", false, 1),
    ("dyn", false, 1),
    ("endsWith", true, 1),
    ("int", false, 1),
    ("size", false, 1),
    ("size", true, 0),
    ("startsWith", true, 1),
    ("string", false, 1),
    ("type", false, 1),
    ("uint", false, 1),
    // Of the parser's own making, in loops.
    (operators::NOT_STRICTLY_FALSE, false, 1),
];

const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
];

const ACCEPTED_FUNCTIONS: &str = "accepted: text.startsWith(s), .endsWith(s), .contains(s), size(x), string(x), int(x), uint(x), \
     double(x), bool(x), bytes(x), type(x), has(a.b), and on lists and maps all(x, c), exists(x, c), \
     exists_one(x, c), filter(x, c), map(x, e)";

/// What is wrong, and with which node.
pub struct Wrong {
    pub node: u64,
    /// The name that the node's place stands behind.
    pub name: String,
    pub message: String,
}

impl Wrong {
    fn new<T>(node: &IdedExpr, name: &str, message: impl Into<String>) -> Result<T, Self> {
        Err(Self { node: node.id, name: name.to_owned(), message: message.into() })
    }
}

/// What an expression reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub claims: bool,
    pub params: bool,
    pub request: Extent,
    /// The members of `params` that it names.
    pub parameters: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    #[default]
    Nothing,
    Line,
    WithHeaders,
}

/// Finds the first thing that is wrong.
pub fn check(root: &IdedExpr) -> Result<Reads, Wrong> {
    let mut check = Check::default();
    check.node(root, 0)?;
    boolean(root)?;
    Ok(check.reads)
}

#[derive(Default)]
struct Check<'e> {
    /// The variables of the loops around.
    loops: Vec<&'e str>,
    reads: Reads,
}

impl<'e> Check<'e> {
    fn node(&mut self, node: &'e IdedExpr, depth: usize) -> Result<(), Wrong> {
        if depth > MAX_DEPTH {
            return Wrong::new(node, "", format!("has more than {MAX_DEPTH} levels: write less in a row"));
        }
        let depth = depth + 1;
        if let Some((of, name)) = member(node) {
            self.member(node, of, name)?;
            // Not as a whole value.
            return if is(of, "request") { Ok(()) } else { self.node(of, depth) };
        }
        match &node.expr {
            Expr::Unspecified => Wrong::new(node, "", "is no expression"),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.variable(node, name),
            Expr::Select(select) => self.node(&select.operand, depth),
            Expr::List(list) => self.nodes(&list.elements, depth),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.node(&entry.key, depth)?;
                    self.node(&entry.value, depth)
                }
                EntryExpr::StructField(_) => Wrong::new(node, "", "is no map"),
            }),
            Expr::Struct(_) => Wrong::new(node, "", "messages do not exist here; accepted: maps, {\"a\": 1}"),
            Expr::Call(call) => self.call(node, call, depth),
            Expr::Comprehension(of) => self.comprehension(node, of, depth),
        }
    }

    fn nodes(&mut self, nodes: &'e [IdedExpr], depth: usize) -> Result<(), Wrong> {
        nodes.iter().try_for_each(|node| self.node(node, depth))
    }

    fn variable(&mut self, node: &IdedExpr, name: &str) -> Result<(), Wrong> {
        match name {
            "claims" => self.reads.claims = true,
            "params" => self.reads.params = true,
            // As a whole.
            "request" => self.reads.request = Extent::WithHeaders,
            // The parser's own, in loops.
            "@result" => {}
            _ if self.loops.contains(&name) || TYPES.contains(&name) => {}
            _ => {
                return Wrong::new(
                    node,
                    "",
                    format!("unknown variable {name:?}; accepted: claims, params, request"),
                );
            }
        }
        Ok(())
    }

    fn member(&mut self, node: &IdedExpr, of: &IdedExpr, name: &str) -> Result<(), Wrong> {
        if is(of, "request") {
            let extent = if name == "headers" { Extent::WithHeaders } else { Extent::Line };
            self.reads.request = self.reads.request.max(extent);
            if !MEMBERS.contains(&name) {
                let accepted = MEMBERS.join(", ");
                return Wrong::new(node, "", format!("unknown member request.{name}; accepted: {accepted}"));
            }
        } else if is(of, "params") {
            self.reads.parameters.insert(name.to_owned());
        } else if member(of).is_some_and(|(of, member)| is(of, "request") && member == "headers") {
            if HIDDEN.contains(&name) {
                return Wrong::new(
                    node,
                    "",
                    format!("the header {name:?} is never shown: it carries tokens"),
                );
            }
            if name.bytes().any(|b| b.is_ascii_uppercase()) {
                return Wrong::new(
                    node,
                    "",
                    format!("{name:?} never occurs: names of headers are lower-case"),
                );
            }
        }
        Ok(())
    }

    fn call(&mut self, node: &IdedExpr, call: &'e CallExpr, depth: usize) -> Result<(), Wrong> {
        let name = call.func_name.as_str();
        let is_member = call.target.is_some();
        let known = OPERATORS.contains(&name)
            || name == operators::IN
            || FUNCTIONS.contains(&(name, is_member, call.args.len()));
        if !known {
            let many = call.args.len();
            let what = if is_member { "called on a value" } else { "called by itself" };
            let text = format!(
                "no function {name:?} is {what} with {many} argument{}; {ACCEPTED_FUNCTIONS}",
                if many == 1 { "" } else { "s" }
            );
            return Wrong::new(node, name, text);
        }
        if let Some(target) = &call.target {
            self.node(target, depth)?;
        }
        self.nodes(&call.args, depth)
    }

    fn comprehension(
        &mut self,
        node: &IdedExpr,
        of: &'e ComprehensionExpr,
        depth: usize,
    ) -> Result<(), Wrong> {
        self.node(&of.iter_range, depth)?;
        let name = of.iter_var.as_str();
        if matches!(name, "claims" | "params" | "request") || name.starts_with('.') {
            return Wrong::new(node, "", format!("{name:?} cannot be the variable of a loop"));
        }
        if self.loops.len() >= MAX_LOOPS {
            return Wrong::new(node, "", format!("more than {MAX_LOOPS} loops within each other"));
        }
        self.loops.push(name);
        for part in [&of.accu_init, &of.loop_cond, &of.loop_step, &of.result] {
            self.node(part, depth)?;
        }
        self.loops.pop();
        Ok(())
    }
}

fn is(node: &IdedExpr, name: &str) -> bool {
    matches!(&node.expr, Expr::Ident(ident) if ident == name)
}

/// `of.name` or `of["name"]`.
fn member(node: &IdedExpr) -> Option<(&IdedExpr, &str)> {
    match &node.expr {
        Expr::Select(select) => Some((select.operand.as_ref(), select.field.as_str())),
        Expr::Call(call) if call.func_name == operators::INDEX => match call.args.as_slice() {
            [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(name)), .. }] => {
                Some((of, name.inner()))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Whatever can be seen not to be true or false where it must be.
fn boolean(node: &IdedExpr) -> Result<(), Wrong> {
    let Expr::Call(call) = &node.expr else {
        return match other(node) {
            Some(what) => Wrong::new(node, "", format!("is {what}, never true or false")),
            None => Ok(()),
        };
    };
    match call.func_name.as_str() {
        operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT | operators::CONDITIONAL => {
            call.args.iter().try_for_each(boolean)
        }
        name => match other(node) {
            Some(what) => Wrong::new(node, name, format!("is {what}, never true or false")),
            None => Ok(()),
        },
    }
}

/// What a node is that cannot be a boolean.
fn other(node: &IdedExpr) -> Option<&'static str> {
    match &node.expr {
        Expr::Literal(value) => match value {
            LiteralValue::Boolean(_) => None,
            LiteralValue::String(_) => Some("a text"),
            LiteralValue::Bytes(_) => Some("bytes"),
            LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => Some("a number"),
            LiteralValue::Null => Some("null"),
        },
        Expr::List(_) => Some("a list"),
        Expr::Map(_) => Some("a map"),
        Expr::Comprehension(of) => matches!(of.accu_init.expr, Expr::List(_)).then_some("a list"),
        Expr::Call(call) => match call.func_name.as_str() {
            operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::NEGATE
            | "size"
            | "int"
            | "uint"
            | "double" => Some("a number"),
            operators::ADD => Some("a sum"),
            "string" => Some("a text"),
            "bytes" => Some("bytes"),
            "type" => Some("a type"),
            _ => None,
        },
        Expr::Ident(name) => match name.as_str() {
            "claims" | "params" | "request" => Some("a map"),
            name => TYPES.contains(&name).then_some("a type"),
        },
        Expr::Select(_) | Expr::Struct(_) | Expr::Unspecified => None,
    }
}

//! Pieces of syntax, as the rules see them: an instruction, a guard, a place, text; and the names that decide it.

use granule_audit::is_unshipped;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Member, Stmt, UnOp};

use super::rules::Rule;

/// A barrier, and the barriers that are weaker.
pub(super) const BARRIERS: [(&str, &[&str]); 11] = [
    ("dsb_sy", &["dsb_ish"]),
    ("dsb_ish", &["dsb_ishst", "dsb_nsh"]),
    ("dsb_ishst", &["dmb_ishst"]),
    ("dsb_nsh", &[]),
    ("dmb_osh", &["dmb_oshst", "dmb_oshld"]),
    ("dmb_oshst", &["dmb_ishst"]),
    ("dmb_oshld", &[]),
    ("dmb_ish", &["dmb_ishst"]),
    ("dmb_ishst", &[]),
    ("isb", &[]),
    ("complete_tlbi", &["dsb_nsh"]),
];

/// The argument of a barrier, and a weaker one.
pub(super) const DOMAINS: [(&str, &str); 6] =
    [("SY", "ISH"), ("ISH", "ISHST"), ("OSH", "OSHST"), ("OSHST", "ISHST"), ("OSHLD", "ISHLD"), ("ISHST", "NSHST")];

/// The operations of TLB maintenance.
pub(super) const TLBIS: [&str; 19] = [
    "vmalle1is",
    "vmalle1",
    "aside1is",
    "aside1",
    "vae1is",
    "vale1is",
    "vaae1is",
    "vaale1is",
    "vae1",
    "vale1",
    "vaae1",
    "vaale1",
    "rvae1is",
    "rvale1is",
    "rvaae1is",
    "rvaale1is",
    "rvaale1",
    "rvae1",
    "rvale1",
];

/// Methods without arguments whose result is a guard. Other guards are known by a name that begins with an underscore.
const GUARDS: [&str; 3] = ["lock", "read", "write"];

/// Methods that round or choose upward, with what does so downward.
pub(super) const UPWARD: [(&str, &str); 5] = [
    ("align_up", "align_down"),
    ("next_multiple_of", "min"),
    ("max", "min"),
    ("min", "max"),
    ("saturating_add", "saturating_sub"),
];

/// Words in the names of calls whose place among others matters, whatever they share: stores, locks, maintenance, and
/// what gives memory away or lets others run. A word of a name stands between underscores.
pub(super) const ORDERING_WORDS: [&str; 36] = [
    "dsb",
    "dmb",
    "asm",
    "unsafe",
    "fence",
    "store",
    "swap",
    "exchange",
    "fetch",
    "volatile",
    "write",
    "lock",
    "unlock",
    "enter",
    "leave",
    "tlbi",
    "flush",
    "invalidate",
    "clean",
    "sync",
    "complete",
    "barrier",
    "publish",
    "unpublish",
    "install",
    "link",
    "unlink",
    "map",
    "unmap",
    "free",
    "retire",
    "release",
    "wake",
    "notify",
    "enable",
    "disable",
];

/// Words of what is compared with a time or a capacity: one more or less changes nothing that is promised.
pub(super) const UNPROMISED: [&str; 19] = [
    "now",
    "until",
    "deadline",
    "deadlines",
    "timeout",
    "timeouts",
    "elapsed",
    "expires",
    "expired",
    "expiry",
    "capacity",
    "ticks",
    "nanos",
    "nanoseconds",
    "micros",
    "microseconds",
    "millis",
    "milliseconds",
    "seconds",
];

/// Calls that take a hint of how much room will be needed.
pub(super) const ROOM: [&str; 5] = ["with_capacity", "try_with_capacity", "reserve", "reserve_exact", "try_reserve"];

/// Macros that print, or that check in debug builds alone.
const TEXT: [&str; 12] = [
    "print",
    "println",
    "debug",
    "info",
    "warn",
    "error",
    "trace",
    "write",
    "writeln",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
];

/// Calls that choose or wrap a value and do nothing else: a guard is not missed in them.
const PURE: [&str; 30] = [
    "from",
    "into",
    "new",
    "map",
    "map_err",
    "ok",
    "ok_or",
    "ok_or_else",
    "and_then",
    "then",
    "then_some",
    "unwrap_or",
    "unwrap_or_default",
    "unwrap_or_else",
    "expect",
    "clone",
    "cloned",
    "copied",
    "len",
    "is_empty",
    "is_some",
    "is_none",
    "is_ok",
    "is_err",
    "is_some_and",
    "is_none_or",
    "min",
    "max",
    "contains",
    "default",
];

/// `name` with fewer CPUs or levels, as far as there are such operations.
pub(super) fn narrower(name: &str) -> Vec<String> {
    let lower = name.to_lowercase();
    let cased = |found: String| {
        // A variant of `Instruction` begins with a capital.
        if name.starts_with(char::is_uppercase) { found[..1].to_uppercase() + &found[1..] } else { found }
    };
    let local = lower.strip_suffix("is").map(str::to_owned);
    let last = (!lower.contains("ale1")).then(|| lower.replacen("ae1", "ale1", 1));
    let is_other = |found: &String| *found != lower && TLBIS.contains(&found.as_str());
    [local, last].into_iter().flatten().filter(is_other).map(cased).collect()
}

/// The replacements of a word of assembly: a barrier or TLB maintenance less or weaker.
pub(super) fn weaker_word(word: &str) -> Vec<(Rule, String)> {
    let (mnemonic, operand) = word.split_once(' ').unwrap_or((word, ""));
    match mnemonic {
        "dsb" | "dmb" | "isb" => {
            let weaker = DOMAINS.iter().find(|(domain, _)| domain.eq_ignore_ascii_case(operand));
            let weaker = weaker.map(|(_, weaker)| format!("{mnemonic} {}", weaker.to_lowercase()));
            weaker.into_iter().chain(["nop".into()]).map(|word| (Rule::Barrier, word)).collect()
        }
        "tlbi" => vec![(Rule::Tlbi, "nop".into())],
        // TLBI by its encoding: CRm chooses the CPUs, bit 2 of op2 the last level.
        "sys" if operand.starts_with("#0, c8, ") => {
            let mut found = Vec::new();
            for (all, local) in [("c8, c3, ", "c8, c7, "), ("c8, c2, ", "c8, c6, ")] {
                if operand.contains(all) {
                    found.push((Rule::Tlbi, word.replace(all, local)));
                }
            }
            for (every, last) in [(", #1, ", ", #5, "), (", #3, ", ", #7, ")] {
                if operand.contains(every) {
                    found.push((Rule::Tlbi, word.replace(every, last)));
                }
            }
            found
        }
        _ => Vec::new(),
    }
}

/// The attributes of a statement.
pub(super) fn attributes(statement: &Stmt) -> &[Attribute] {
    match statement {
        Stmt::Local(local) => &local.attrs,
        Stmt::Macro(call) => &call.attrs,
        Stmt::Expr(Expr::Block(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::Unsafe(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::If(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::Call(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::MethodCall(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::Return(inner), _) => &inner.attrs,
        Stmt::Expr(Expr::Assign(inner), _) => &inner.attrs,
        Stmt::Item(_) | Stmt::Expr(..) => &[],
    }
}

/// The name that a call is by: a function's or a method's.
pub(super) fn called(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Call(call) => match &*call.func {
            Expr::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
            _ => None,
        },
        Expr::MethodCall(call) => Some(call.method.to_string()),
        Expr::Try(inner) => called(&inner.expr),
        Expr::Unsafe(inner) => match inner.block.stmts.as_slice() {
            [Stmt::Expr(only, _)] => called(only),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a call is one of a barrier or of TLB maintenance.
pub(super) fn is_instruction(name: &str) -> bool {
    BARRIERS.iter().any(|(barrier, _)| name == *barrier) || TLBIS.contains(&name) || ["fence", "tlbi"].contains(&name)
}

/// Whether an expression acquires a lock.
pub(super) fn is_guard(expression: &Expr) -> bool {
    matches!(expression, Expr::MethodCall(call) if call.args.is_empty() && GUARDS.iter().any(|name| call.method == name))
}

/// Whether an expression reads the same before or behind an operator.
pub(super) fn is_simple(expression: &Expr) -> bool {
    matches!(
        expression,
        Expr::Path(_) | Expr::Call(_) | Expr::MethodCall(_) | Expr::Field(_) | Expr::Lit(_) | Expr::Paren(_)
    )
}

/// Whether a statement does something that can be left out: a call, an assignment.
pub(super) fn does_something(statement: &Stmt) -> bool {
    let Stmt::Expr(expression, Some(_)) = statement else { return false };
    let assigns = match expression {
        Expr::Assign(_) => true,
        Expr::Binary(binary) => is_assignment(&binary.op),
        _ => false,
    };
    assigns || called(expression).is_some_and(|name| name != "drop")
}

fn is_assignment(operator: &BinOp) -> bool {
    matches!(
        operator,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
            | BinOp::MulAssign(_)
    )
}

/// A variable, or a field of one: `a.b.c`.
fn place(expression: &Expr) -> Option<String> {
    match expression {
        // A variant is no variable.
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string).filter(|name| !is_of_type(name)),
        Expr::Field(field) => {
            let member = match &field.member {
                Member::Named(name) => name.to_string(),
                Member::Unnamed(index) => index.index.to_string(),
            };
            Some(format!("{}.{member}", place(&field.base)?))
        }
        Expr::Index(index) => place(&index.expr),
        Expr::Paren(inner) => place(&inner.expr),
        Expr::Reference(inner) => place(&inner.expr),
        Expr::Unary(unary) if matches!(unary.op, UnOp::Deref(_)) => place(&unary.expr),
        _ => None,
    }
}

/// Whether a name is written as types and variants are: `Relaxed`.
fn is_of_type(name: &str) -> bool {
    name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase)
}

/// The places that a statement names, and those of them that it may change.
#[derive(Default)]
pub(super) struct Places {
    named: Vec<String>,
    changed: Vec<String>,
}

impl Places {
    pub(super) fn of(statement: &Stmt) -> Self {
        let mut places = Self::default();
        places.visit_stmt(statement);
        places
    }

    /// Whether one may change what the other names: a variable, or a field of it.
    pub(super) fn meet(&self, other: &Self) -> bool {
        let is_within = |one: &str, whole: &str| {
            one.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let meets = |changed: &[String], named: &[String]| {
            changed.iter().any(|one| named.iter().any(|other| is_within(one, other) || is_within(other, one)))
        };
        meets(&self.changed, &other.named) || meets(&other.changed, &self.named)
    }
}

impl<'ast> Visit<'ast> for Places {
    fn visit_expr(&mut self, expression: &'ast Expr) {
        let changed: Vec<&Expr> = match expression {
            Expr::Assign(assign) => match &*assign.left {
                Expr::Tuple(tuple) => tuple.elems.iter().collect(),
                one => vec![one],
            },
            Expr::Binary(binary) if is_assignment(&binary.op) => vec![&binary.left],
            // By way of a shared reference too: a cell, a lock, an atomic.
            Expr::MethodCall(call) => [&*call.receiver].into_iter().chain(&call.args).collect(),
            Expr::Call(call) => call.args.iter().collect(),
            // An address is none of the values that are there.
            Expr::RawAddr(_) => return,
            _ => Vec::new(),
        };
        self.changed.extend(changed.into_iter().filter_map(place));
        if let Expr::Path(_) | Expr::Field(_) = expression
            && let Some(named) = place(expression)
        {
            self.named.push(named);
            return;
        }
        if let Expr::Call(call) = expression {
            // The function itself is no place.
            call.args.iter().for_each(|argument| self.visit_expr(argument));
        } else {
            visit::visit_expr(self, expression);
        }
    }
}

/// The value of which a statement fills one field, and the method: the fields of one value are filled in any order.
pub(super) fn filled(statement: &Stmt) -> Option<(String, String)> {
    let Stmt::Expr(Expr::MethodCall(call), _) = statement else { return None };
    let method = call.method.to_string();
    ["modify", "put"].contains(&method.as_str()).then(|| Some((place(&call.receiver)?, method)))?
}

/// Whether a statement only lets other threads run.
pub(super) fn is_scheduling_point(statement: &Stmt) -> bool {
    matches!(statement, Stmt::Expr(expression, _) if called(expression).is_some_and(|name| name == "relax"))
}

/// The words of names in a piece of code, in lower case.
pub(super) fn words(code: &str) -> impl Iterator<Item = String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| line.split(|sign: char| !sign.is_alphanumeric())).map(str::to_lowercase)
}

/// Whether there is a call that does more than to choose or wrap a value.
pub(super) fn calls(statement: &Stmt) -> bool {
    struct Calls(bool);
    impl<'ast> Visit<'ast> for Calls {
        fn visit_expr(&mut self, expression: &'ast Expr) {
            let direct =
                if matches!(expression, Expr::Call(_) | Expr::MethodCall(_)) { called(expression) } else { None };
            // A struct or a variant begins with a capital.
            let is_pure = |name: String| name.starts_with(char::is_uppercase) || PURE.contains(&name.as_str());
            self.0 |= direct.is_some_and(|name| !is_pure(name));
            visit::visit_expr(self, expression);
        }

        fn visit_macro(&mut self, item: &'ast syn::Macro) {
            self.0 |= !is_text(item);
        }
    }
    let mut found = Calls(false);
    found.visit_stmt(statement);
    found.0
}

/// Whether a macro prints, or checks in debug builds alone.
fn is_text(item: &syn::Macro) -> bool {
    item.path.segments.last().is_some_and(|last| TEXT.iter().any(|name| last.ident == name))
}

/// Whether a block does nothing but print and check.
pub(super) fn is_text_alone(block: &Block) -> bool {
    let is_text = |statement: &Stmt| match statement {
        Stmt::Macro(call) => is_text(&call.mac),
        Stmt::Expr(Expr::Macro(call), _) => is_text(&call.mac),
        _ => false,
    };
    !block.stmts.is_empty() && block.stmts.iter().all(is_text)
}

/// Whether an item is no part of what runs: code of tests, of the host's doubles, of debug builds.
pub(super) fn is_left_alone(attributes: &[Attribute]) -> bool {
    is_unshipped(attributes)
        || attributes.iter().any(|attribute| {
            let condition = || attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "debug_assertions");
            attribute.path().is_ident("cfg") && condition()
        })
}

/// Whether a type is that of a table: an array, or a slice behind a reference.
pub(super) fn is_table(kind: &syn::Type) -> bool {
    match kind {
        syn::Type::Array(_) | syn::Type::Slice(_) => true,
        syn::Type::Reference(inner) => is_table(&inner.elem),
        _ => false,
    }
}

/// Whether an expression binds names by `let`.
pub(super) fn has_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        Expr::Paren(inner) => has_let(&inner.expr),
        _ => false,
    }
}

/// Whether a name occurs among tokens.
pub(super) fn mentions(tokens: TokenStream, name: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => mentions(group.stream(), name),
        // `println!("{name}")`.
        TokenTree::Literal(literal) => literal.to_string().contains(name),
        TokenTree::Punct(_) => false,
    })
}

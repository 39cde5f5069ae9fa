//! The rules: which small changes break a source file, each a range of bytes and its replacement.
//!
//! The common ones (a condition, a bound, a call left out) are those of other mutation testers. Barriers, words of TLB
//! maintenance, `Ordering`s and locks are this kernel's: they are found by the names of `granule-arch`, of core's
//! atomics and of the guards. Code of tests, of the host's doubles and of `Debug` and `Display` stays as it is.
//!
//! A mutant keeps the number of its file's lines, so that a panic's line, which the image holds, tells two images apart
//! only where the code does.

use std::ops::Range;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Lit, Pat, RangeLimits, Stmt};

use crate::audit::is_unshipped;

/// What a mutant does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rule {
    /// A barrier is dropped or weakened.
    Barrier,
    /// An invalidation is dropped, or reaches fewer CPUs or levels.
    Tlbi,
    /// An `Ordering` is relaxed.
    Ordering,
    /// A condition is negated, or `&&` and `||` are exchanged.
    Condition,
    /// A bound is moved by one.
    Bound,
    /// An operand is narrowed: a mask, a shift, what is rounded up.
    Operand,
    /// Two neighbouring statements are exchanged.
    Exchange,
    /// A call, a count or an undo is left out.
    Omission,
    /// A lock or another guard is dropped early.
    EarlyDrop,
}

impl Rule {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Tlbi => "tlbi",
            Self::Ordering => "ordering",
            Self::Condition => "condition",
            Self::Bound => "bound",
            Self::Operand => "operand",
            Self::Exchange => "exchange",
            Self::Omission => "omission",
            Self::EarlyDrop => "early-drop",
        }
    }
}

/// One change of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) rule: Rule,
    /// The bytes that it replaces.
    pub(super) range: Range<usize>,
    pub(super) replacement: String,
    /// Where the innermost block around it begins, behind the brace, if code may be added there.
    pub(super) block: Option<usize>,
}

/// All changes of a source file, in the order of their places.
///
/// # Errors
/// When it cannot be parsed.
pub(super) fn changes(source: &str) -> Result<Vec<Change>> {
    let file = syn::parse_file(source).context("cannot parse")?;
    let mut finder = Finder { source, block: None, constant: false, in_fence: false, changes: Vec::new() };
    finder.visit_file(&file);
    finder.changes.sort_by_key(|change| (change.range.start, change.range.end));
    finder.changes.dedup();
    Ok(finder.changes)
}

/// A barrier, and the barriers that are weaker.
const BARRIERS: [(&str, &[&str]); 11] = [
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
const DOMAINS: [(&str, &str); 6] =
    [("SY", "ISH"), ("ISH", "ISHST"), ("OSH", "OSHST"), ("OSHST", "ISHST"), ("OSHLD", "ISHLD"), ("ISHST", "NSHST")];

/// The operations of TLB maintenance.
const TLBIS: [&str; 19] = [
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
const UPWARD: [(&str, &str); 5] = [
    ("align_up", "align_down"),
    ("next_multiple_of", "min"),
    ("max", "min"),
    ("min", "max"),
    ("saturating_add", "saturating_sub"),
];

/// `name` with fewer CPUs or levels, as far as there are such operations.
fn narrower(name: &str) -> Vec<String> {
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

/// What a word of assembly becomes: a barrier or TLB maintenance less or weaker.
fn weaker_word(word: &str) -> Vec<(Rule, String)> {
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
fn attributes(statement: &Stmt) -> &[Attribute] {
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
fn called(expression: &Expr) -> Option<String> {
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
fn is_instruction(name: &str) -> bool {
    BARRIERS.iter().any(|(barrier, _)| name == *barrier) || TLBIS.contains(&name) || ["fence", "tlbi"].contains(&name)
}

/// Whether an expression acquires a lock.
fn is_guard(expression: &Expr) -> bool {
    matches!(expression, Expr::MethodCall(call) if call.args.is_empty() && GUARDS.iter().any(|name| call.method == name))
}

/// Whether an expression reads the same before or behind an operator.
fn is_simple(expression: &Expr) -> bool {
    matches!(
        expression,
        Expr::Path(_) | Expr::Call(_) | Expr::MethodCall(_) | Expr::Field(_) | Expr::Lit(_) | Expr::Paren(_)
    )
}

/// Whether a statement does something that can be left out: a call, an assignment.
fn does_something(statement: &Stmt) -> bool {
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

/// The variable, or the field of one, that a statement assigns.
fn assigned(statement: &Stmt) -> Option<&Expr> {
    let place = match statement {
        Stmt::Expr(Expr::Assign(assign), _) => &*assign.left,
        Stmt::Expr(Expr::Binary(binary), _) if is_assignment(&binary.op) => &*binary.left,
        _ => return None,
    };
    matches!(place, Expr::Path(_) | Expr::Field(_)).then_some(place)
}

/// Whether an expression binds names by `let`.
fn has_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        Expr::Paren(inner) => has_let(&inner.expr),
        _ => false,
    }
}

/// Whether a name occurs among tokens.
fn mentions(tokens: TokenStream, name: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => mentions(group.stream(), name),
        // `println!("{name}")`.
        TokenTree::Literal(literal) => literal.to_string().contains(name),
        TokenTree::Punct(_) => false,
    })
}

/// Collects the changes of one file.
struct Finder<'a> {
    source: &'a str,
    /// Behind the brace of the innermost block.
    block: Option<usize>,
    /// In a `const fn` or a constant.
    constant: bool,
    /// In the argument of a `fence`.
    in_fence: bool,
    changes: Vec<Change>,
}

impl Finder<'_> {
    /// The text of an operand.
    fn operand(&self, expression: &Expr) -> String {
        let text = self.text(expression);
        if is_simple(expression) { text.to_owned() } else { format!("({text})") }
    }

    fn text(&self, spanned: &impl Spanned) -> &str {
        self.source.get(spanned.span().byte_range()).unwrap_or_default()
    }

    fn add(&mut self, rule: Rule, range: Range<usize>, replacement: impl Into<String>) {
        let (mut replacement, block) = (replacement.into(), self.block.filter(|_| !self.constant));
        let Some(replaced) = self.source.get(range.clone()) else { return };
        if replaced == replacement {
            return;
        }
        let lines = |text: &str| text.matches('\n').count();
        replacement.push_str(&"\n".repeat(lines(replaced).saturating_sub(lines(&replacement))));
        self.changes.push(Change { rule, range, replacement, block });
    }

    fn replace(&mut self, rule: Rule, spanned: &impl Spanned, replacement: impl Into<String>) {
        self.add(rule, spanned.span().byte_range(), replacement);
    }

    /// A call of a barrier or of TLB maintenance.
    fn instruction(&mut self, expression: &Expr, name: &syn::Ident, arguments: usize) {
        let text = name.to_string();
        if let Some((_, weaker)) = BARRIERS.iter().find(|(barrier, _)| text == *barrier && arguments == 0) {
            self.replace(Rule::Barrier, expression, "()");
            weaker.iter().for_each(|weaker| self.replace(Rule::Barrier, name, *weaker));
        } else if text == "fence" {
            self.replace(Rule::Barrier, expression, "()");
        } else if text == "tlbi" || TLBIS.contains(&text.as_str()) {
            self.replace(Rule::Tlbi, expression, "()");
        }
    }

    /// Visits what is, or is not, evaluated at compile time.
    fn in_constant(&mut self, constant: bool, visit: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.constant, constant);
        visit(self);
        self.constant = outer;
    }

    /// `drop(guard)` behind the last statement that uses a guard.
    fn early_drop(&mut self, block: &Block, index: usize) {
        let Stmt::Local(local) = &block.stmts[index] else { return };
        let (Pat::Ident(pattern), Some(init)) = (&local.pat, &local.init) else { return };
        let name = pattern.ident.to_string();
        let is_guard = name.starts_with('_') || is_guard(&init.expr);
        let rest = &block.stmts[index + 1..];
        let used = rest.iter().rposition(|statement| mentions(self.tokens(statement), &name));
        // Behind the block's last statement it would be dropped anyway.
        let last = used.map_or(index, |used| index + 1 + used);
        let is_dropped = self.text(&block.stmts[last]).starts_with("drop(");
        if is_guard && !is_dropped && last + 1 < block.stmts.len() {
            let end = block.stmts[last].span().byte_range().end;
            self.add(Rule::EarlyDrop, end..end, format!(" drop({name});"));
        }
    }

    fn tokens(&self, statement: &Stmt) -> TokenStream {
        self.text(statement).parse().unwrap_or_default()
    }

    /// Whether two statements assign plain variables, each one that the other does not mention: their order is no
    /// matter.
    fn is_independent(&self, first: &Stmt, second: &Stmt) -> bool {
        match (assigned(first), assigned(second)) {
            (Some(one), Some(other)) => {
                !self.text(second).contains(self.text(one)) && !self.text(first).contains(self.text(other))
            }
            _ => false,
        }
    }

    /// What a block's statements offer together.
    fn statements(&mut self, block: &Block) {
        for (index, statement) in block.stmts.iter().enumerate() {
            if is_unshipped(attributes(statement)) {
                continue;
            }
            self.early_drop(block, index);
            if !does_something(statement) {
                continue;
            }
            let name = if let Stmt::Expr(expression, _) = statement { called(expression) } else { None };
            if !name.is_some_and(|name| is_instruction(&name)) {
                self.replace(Rule::Omission, statement, "");
            }
            if let Some(next) = block.stmts.get(index + 1).filter(|next| does_something(next))
                && !is_unshipped(attributes(next))
                && !self.is_independent(statement, next)
            {
                let (first, second) = (statement.span().byte_range(), next.span().byte_range());
                let between = self.source.get(first.end..second.start).unwrap_or_default();
                let exchanged = format!("{}{between}{}", self.text(next), self.text(statement));
                self.add(Rule::Exchange, first.start..second.end, exchanged);
            }
        }
    }

    /// The words of a macro: assembly, and the names that make a barrier.
    fn macro_tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match &token {
                TokenTree::Group(group) => self.macro_tokens(group.stream()),
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    if let Some((_, weaker)) = DOMAINS.iter().find(|(domain, _)| name == *domain) {
                        self.add(Rule::Barrier, ident.span().byte_range(), *weaker);
                    }
                }
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let word = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default();
                    for (rule, weaker) in weaker_word(word) {
                        self.add(rule, literal.span().byte_range(), format!("\"{weaker}\""));
                    }
                }
                TokenTree::Punct(_) => {}
            }
        }
    }

    /// A binary operation: a bound, a condition, an operand.
    fn binary(&mut self, binary: &syn::ExprBinary) {
        let other = match binary.op {
            BinOp::Lt(_) => Some((Rule::Bound, "<=")),
            BinOp::Le(_) => Some((Rule::Bound, "<")),
            BinOp::Gt(_) => Some((Rule::Bound, ">=")),
            BinOp::Ge(_) => Some((Rule::Bound, ">")),
            BinOp::And(_) if !has_let(&binary.left) && !has_let(&binary.right) => Some((Rule::Condition, "||")),
            BinOp::Or(_) => Some((Rule::Condition, "&&")),
            _ => None,
        };
        if let Some((rule, operator)) = other {
            self.replace(rule, &binary.op, operator);
        }
        let Expr::Lit(syn::ExprLit { lit: Lit::Int(literal), .. }) = &*binary.right else { return };
        let (Ok(value), suffix) = (literal.base10_parse::<u64>(), literal.suffix()) else { return };
        match binary.op {
            BinOp::Add(_) | BinOp::Sub(_) if value == 1 => self.replace(Rule::Bound, literal, format!("0{suffix}")),
            BinOp::Shl(_) if value > 0 => self.replace(Rule::Operand, literal, format!("{}{suffix}", value - 1)),
            BinOp::Shr(_) => self.replace(Rule::Operand, literal, format!("{}{suffix}", value + 1)),
            BinOp::BitAnd(_) if value > 1 => {
                let narrow = value & !(1 << value.ilog2());
                self.replace(Rule::Operand, literal, format!("{narrow:#x}{suffix}"));
            }
            _ => {}
        }
    }

    fn path(&mut self, path: &syn::ExprPath) {
        let segments = &path.path.segments;
        let Some(last) = segments.last().map(|segment| &segment.ident) else { return };
        let name = last.to_string();
        let within = segments.iter().rev().nth(1).map(|segment| segment.ident.to_string()).unwrap_or_default();
        match (within.as_str(), name.as_str()) {
            // A fence is at least one of these.
            ("Ordering", "SeqCst") if self.in_fence => self.replace(Rule::Ordering, last, "AcqRel"),
            ("Ordering", "Acquire" | "Release") if self.in_fence => {}
            ("Ordering", "Acquire" | "Release" | "SeqCst") => self.replace(Rule::Ordering, last, "Relaxed"),
            ("Ordering", "AcqRel") => {
                self.replace(Rule::Ordering, last, "Acquire");
                self.replace(Rule::Ordering, last, "Release");
            }
            ("Tables", "Unlinked") => self.replace(Rule::Tlbi, last, "Kept"),
            _ => narrower(&name).into_iter().for_each(|other| self.replace(Rule::Tlbi, last, other)),
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_unshipped(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_unshipped(&item.attrs) {
            self.in_constant(item.sig.constness.is_some(), |finder| visit::visit_item_fn(finder, item));
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_unshipped(&item.attrs) {
            self.in_constant(item.sig.constness.is_some(), |finder| visit::visit_impl_item_fn(finder, item));
        }
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.in_constant(true, |finder| visit::visit_item_const(finder, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.in_constant(true, |finder| visit::visit_item_static(finder, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.in_constant(true, |finder| visit::visit_impl_item_const(finder, item));
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.in_constant(true, |finder| visit::visit_trait_item_const(finder, item));
    }

    fn visit_expr_const(&mut self, item: &'ast syn::ExprConst) {
        self.in_constant(true, |finder| visit::visit_expr_const(finder, item));
    }

    fn visit_expr_closure(&mut self, item: &'ast syn::ExprClosure) {
        self.in_constant(false, |finder| visit::visit_expr_closure(finder, item));
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let shows = item
            .trait_
            .as_ref()
            .and_then(|(path, ..)| path.segments.last())
            .is_some_and(|segment| ["Debug", "Display", "LowerHex"].iter().any(|name| segment.ident == name));
        if !shows && !is_unshipped(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let outer = self.block.replace(block.brace_token.span.open().byte_range().end);
        self.statements(block);
        visit::visit_block(self, block);
        self.block = outer;
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !is_unshipped(attributes(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.macro_tokens(item.tokens.clone());
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::Call(call) => {
                if let Expr::Path(path) = &*call.func
                    && let Some(last) = path.path.segments.last()
                {
                    self.instruction(expression, &last.ident, call.args.len());
                }
            }
            Expr::MethodCall(call) => {
                self.instruction(expression, &call.method, call.args.len());
                let name = call.method.to_string();
                if let Some((_, downward)) = UPWARD.iter().find(|(upward, _)| name == *upward && call.args.len() == 1) {
                    self.replace(Rule::Operand, &call.method, *downward);
                }
                if let (true, Some(by)) = (name == "div_ceil", call.args.first()) {
                    let divided = format!("({} / {})", self.operand(&call.receiver), self.operand(by));
                    self.replace(Rule::Operand, expression, divided);
                }
            }
            Expr::If(branch) if !has_let(&branch.cond) => {
                let negated = format!("!{}", self.operand(&branch.cond));
                self.replace(Rule::Condition, &branch.cond, negated);
            }
            Expr::Binary(binary) => self.binary(binary),
            Expr::Range(range) => {
                if let Some(end) = &range.end {
                    match range.limits {
                        RangeLimits::HalfOpen(_) => {
                            let moved = format!("{} - 1", self.operand(end));
                            self.replace(Rule::Bound, end, moved);
                        }
                        RangeLimits::Closed(limits) => self.add(Rule::Bound, limits.span().byte_range(), ".."),
                    }
                }
            }
            Expr::Path(path) => self.path(path),
            _ => {}
        }
        let fence = called(expression).is_some_and(|name| name == "fence");
        let outer = self.in_fence;
        self.in_fence |= fence;
        visit::visit_expr(self, expression);
        self.in_fence = outer;
    }

    fn visit_pat_guard(&mut self, guarded: &'ast syn::PatGuard) {
        if !has_let(&guarded.guard) {
            let negated = format!("!{}", self.operand(&guarded.guard));
            self.replace(Rule::Condition, &*guarded.guard, negated);
        }
        visit::visit_pat_guard(self, guarded);
    }
}

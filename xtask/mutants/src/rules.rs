//! The rules: which small changes break a source file, each a range of bytes and its replacement.
//!
//! The common ones (a condition, a bound, a call left out) are those of other mutation testers. Barriers, words of TLB
//! maintenance, `Ordering`s and locks are this kernel's: they are found by the names of `granule-arch`, of core's
//! atomics and of the guards.
//!
//! Unseen changes are not drawn, so that a survivor means something: code of tests, of the host's doubles and of the
//! lab, debug assertions, text for people, tables of constants, bounds of deadlines and capacities; two statements that
//! share nothing and order nothing stay as they stand, and so does a guard behind which nothing is called.
//!
//! A mutant keeps the number of its file's lines, so that a panic's line, which the image holds, tells two images apart
//! only where the code does.

use std::ops::Range;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Block, Expr, Lit, Pat, RangeLimits, Stmt};

use super::syntax::{
    BARRIERS, DOMAINS, ORDERING_WORDS, Places, ROOM, TLBIS, UNPROMISED, UPWARD, attributes, called, calls,
    does_something, filled, has_let, is_guard, is_instruction, is_left_alone, is_scheduling_point, is_simple, is_table,
    is_text_alone, mentions, narrower, weaker_word, words,
};

/// The kind of change that a mutant makes.
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
    /// A change that the table of mutants lists.
    ByHand,
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
            Self::ByHand => "by-hand",
        }
    }

    /// Whether it changes what follows what, for other CPUs and devices. One by hand may.
    pub(super) fn is_of_order(self) -> bool {
        matches!(self, Self::Barrier | Self::Tlbi | Self::Ordering | Self::EarlyDrop | Self::ByHand)
    }
}

/// One change of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) rule: Rule,
    /// The bytes that it replaces.
    pub(super) range: Range<usize>,
    pub(super) replacement: String,
    /// The bytes between the braces of the innermost block around its begin, if code may be added there.
    pub(super) block: Option<Range<usize>>,
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

/// The change that puts `to` at `range`.
///
/// # Errors
/// When the source cannot be parsed.
pub(super) fn by_hand(source: &str, range: Range<usize>, to: &str) -> Result<Change> {
    let file = syn::parse_file(source).context("cannot parse")?;
    let mut blocks = Blocks { at: range.start, constant: false, innermost: None };
    blocks.visit_file(&file);
    let lines = |text: &str| text.matches('\n').count();
    let missing = lines(&source[range.clone()]).saturating_sub(lines(to));
    Ok(Change {
        rule: Rule::ByHand,
        range,
        replacement: to.to_owned() + &"\n".repeat(missing),
        block: blocks.innermost,
    })
}

/// The bytes between a block's braces.
fn inside(block: &Block) -> Range<usize> {
    let braces = block.brace_token.span;
    braces.open().byte_range().end..braces.close().byte_range().start
}

/// Finds the innermost block of a function that may take a probe.
struct Blocks {
    at: usize,
    /// In a `const fn`.
    constant: bool,
    innermost: Option<Range<usize>>,
}

impl Blocks {
    fn function(&mut self, signature: &syn::Signature, block: &Block) {
        let outer = std::mem::replace(&mut self.constant, signature.constness.is_some());
        self.visit_block(block);
        self.constant = outer;
    }
}

impl<'ast> Visit<'ast> for Blocks {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}

    fn visit_block(&mut self, block: &'ast Block) {
        let inside = inside(block);
        if (inside.start..=inside.end).contains(&self.at) && !self.constant {
            self.innermost = Some(inside);
        }
        visit::visit_block(self, block);
    }
}

/// Collects the changes of one file.
struct Finder<'a> {
    source: &'a str,
    /// Between the braces of the innermost block.
    block: Option<Range<usize>>,
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
        let (mut replacement, block) = (replacement.into(), self.block.clone().filter(|_| !self.constant));
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
        if is_guard && !is_dropped && block.stmts[last + 1..].iter().any(calls) {
            let end = block.stmts[last].span().byte_range().end;
            self.add(Rule::EarlyDrop, end..end, format!(" drop({name});"));
        }
    }

    fn tokens(&self, statement: &Stmt) -> TokenStream {
        self.text(statement).parse().unwrap_or_default()
    }

    /// Whether the order of two statements can matter: one may change what the other names, or one calls
    /// something, and is an instruction or has one of [`ORDERING_WORDS`] in it.
    fn is_ordered(&self, first: &Stmt, second: &Stmt) -> bool {
        let orders = |statement: &Stmt| {
            let mut words = words(self.text(statement));
            // A field's name orders nothing.
            calls(statement) && words.any(|word| is_instruction(&word) || ORDERING_WORDS.contains(&word.as_str()))
        };
        // No CPU keeps two relaxed accesses of different variables in order.
        let is_relaxed = self.is_relaxed(first) && self.is_relaxed(second);
        let fills = [first, second].map(filled);
        let is_filled = fills[0].is_some() && fills[0] == fills[1];
        // A scheduling point lets others run before the one or after it.
        let is_point = [first, second].into_iter().any(is_scheduling_point);
        !is_filled
            && !is_point
            && (!is_relaxed && (orders(first) || orders(second)) || Places::of(first).meet(&Places::of(second)))
    }

    /// Whether a statement accesses atomics, and orders nothing.
    fn is_relaxed(&self, statement: &Stmt) -> bool {
        let text = self.text(statement);
        text.contains("Relaxed") && !["Acquire", "Release", "AcqRel", "SeqCst"].iter().any(|name| text.contains(name))
    }

    /// Adds the changes of a block's statements: each left out, two exchanged, a guard dropped early.
    fn statements(&mut self, block: &Block) {
        for (index, statement) in block.stmts.iter().enumerate() {
            if is_left_alone(attributes(statement)) {
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
                && !is_left_alone(attributes(next))
                && self.is_ordered(statement, next)
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

    /// Whether a function writes text for people: it has somewhere to write it.
    fn writes_text(&self, signature: &syn::Signature) -> bool {
        let is_writer =
            |input: &syn::FnArg| words(self.text(input)).any(|word| ["formatter", "write"].contains(&word.as_str()));
        signature.inputs.iter().any(is_writer)
    }

    /// Whether a condition asks for the lab or for a debug build.
    fn asks_aside(&self, condition: &Expr) -> bool {
        let text = self.text(condition);
        text.contains("lab::") || text.contains("debug_assertions")
    }

    /// Whether a condition holds in the lab or in a debug build alone.
    fn holds_aside(&self, condition: &Expr) -> bool {
        match condition {
            Expr::Paren(inner) => self.holds_aside(&inner.expr),
            Expr::Binary(binary) if matches!(binary.op, BinOp::And(_)) => {
                self.holds_aside(&binary.left) || self.holds_aside(&binary.right)
            }
            Expr::Macro(_) => self.asks_aside(condition),
            _ => false,
        }
    }

    /// Whether a time or a capacity is compared.
    fn is_unpromised(&self, binary: &syn::ExprBinary) -> bool {
        words(self.text(binary)).any(|word| UNPROMISED.contains(&word.as_str()))
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
        if let Some((rule, operator)) = other
            && !(rule == Rule::Bound && self.is_unpromised(binary))
            && !(rule == Rule::Condition && (self.asks_aside(&binary.left) || self.asks_aside(&binary.right)))
        {
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

    fn range(&mut self, range: &syn::ExprRange) {
        let Some(end) = &range.end else { return };
        match range.limits {
            RangeLimits::HalfOpen(_) => {
                let moved = format!("{} - 1", self.operand(end));
                self.replace(Rule::Bound, end, moved);
            }
            RangeLimits::Closed(limits) => self.add(Rule::Bound, limits.span().byte_range(), ".."),
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
        if !is_left_alone(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_left_alone(&item.attrs) && !self.writes_text(&item.sig) {
            self.in_constant(item.sig.constness.is_some(), |finder| visit::visit_item_fn(finder, item));
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_left_alone(&item.attrs) && !self.writes_text(&item.sig) {
            self.in_constant(item.sig.constness.is_some(), |finder| visit::visit_impl_item_fn(finder, item));
        }
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        if !is_table(&item.ty) {
            self.in_constant(true, |finder| visit::visit_item_const(finder, item));
        }
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        if !is_table(&item.ty) {
            self.in_constant(true, |finder| visit::visit_item_static(finder, item));
        }
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        if !is_table(&item.ty) {
            self.in_constant(true, |finder| visit::visit_impl_item_const(finder, item));
        }
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
        if !shows && !is_left_alone(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let outer = self.block.replace(inside(block));
        self.statements(block);
        visit::visit_block(self, block);
        self.block = outer;
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !is_left_alone(attributes(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.macro_tokens(item.tokens.clone());
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let guard = if let Pat::Guard(guarded) = &arm.pat { Some(&guarded.guard) } else { None };
        if !guard.is_some_and(|guard| self.asks_aside(guard)) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::If(branch) if is_text_alone(&branch.then_branch) && branch.else_branch.is_none() => return,
            // The branch that runs without the lab, and in a release build.
            Expr::If(branch) if self.asks_aside(&branch.cond) => {
                if !self.holds_aside(&branch.cond) {
                    self.visit_block(&branch.then_branch);
                }
                let denied = if let Expr::Unary(unary) = &*branch.cond { Some(&*unary.expr) } else { None };
                if let Some((_, other)) = &branch.else_branch
                    && !denied.is_some_and(|denied| self.holds_aside(denied))
                {
                    self.visit_expr(other);
                }
                return;
            }
            Expr::Call(_) | Expr::MethodCall(_)
                if called(expression).is_some_and(|name| ROOM.contains(&name.as_str())) =>
            {
                return;
            }
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
            Expr::Range(range) => self.range(range),
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

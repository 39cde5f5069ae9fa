//! Paths: from a directory, name by name, to what is there (Linux: `fs/namei.c`).
//!
//! Symbolic links are followed, up to 40 on one path. In `/proc` the names are the kernel's own ([`ProcEntry`]).

use super::proc::ProcEntry;
use super::tree::{NAME, NodeKind, NodeRef, Tree};
use crate::linux::errno::Errno;
use crate::sched::relax;

/// Symbolic links on a path (`MAXSYMLINKS`).
const LINKS: usize = 40;

/// Something that a path leads to.
pub enum Place<C: 'static> {
    /// In the tree.
    Node(NodeRef<C>),
    /// In `/proc`.
    Proc(ProcEntry),
}

impl<C> Clone for Place<C> {
    fn clone(&self) -> Self {
        match self {
            Self::Node(node) => Self::Node(node.clone()),
            Self::Proc(entry) => Self::Proc(*entry),
        }
    }
}

impl<C> Place<C> {
    /// A node; `/proc` itself where that begins there.
    pub fn of(node: NodeRef<C>) -> Self {
        if matches!(node.kind, NodeKind::Proc) { Self::Proc(ProcEntry::Root) } else { Self::Node(node) }
    }

    /// Whether paths may go on from it.
    pub fn is_directory(&self) -> bool {
        match self {
            Self::Node(node) => node.is_directory(),
            Self::Proc(entry) => !matches!(entry, ProcEntry::File(..)),
        }
    }

    /// The symbolic link that it is.
    pub fn link(&self) -> Option<(&NodeRef<C>, &[u8])> {
        match self {
            Self::Node(node) => {
                if let NodeKind::Link(target) = &node.kind {
                    Some((node, target))
                } else {
                    None
                }
            }
            Self::Proc(_) => None,
        }
    }
}

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// It is.
    Always,
    /// Only where a slash follows it.
    BeforeSlash,
    /// Never: the last name is to be made, or removed.
    Never,
}

/// The last name of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "most are names, and one is on the stack at a time")]
pub enum Last {
    /// A name.
    Name(heapless::Vec<u8, NAME>),
    /// A name that no directory can have: [`Follow::Never`].
    TooLong,
    /// There is none: the root.
    Root,
    /// `.`
    Dot,
    /// `..`
    DotDot,
}

/// Where a path leads.
pub struct Found<C: 'static> {
    /// The directory that its last name is in.
    pub directory: Place<C>,
    /// The last name.
    pub last: Last,
    /// Whether a slash follows it.
    pub slash: bool,
    /// The place that has it; `None` if none does.
    pub place: Option<Place<C>>,
}

impl<C> Found<C> {
    /// The place that is there.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`: a slash follows its name, and it is no directory.
    pub fn existing(self) -> Result<Place<C>, Errno> {
        let place = self.place.ok_or(Errno::ENOENT)?;
        if self.slash && !place.is_directory() { Err(Errno::ENOTDIR) } else { Ok(place) }
    }
}

/// The next name of a text from `at` on: the name, and where it ends.
fn next_name(text: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = text.get(at..)?;
    let start = at + rest.iter().position(|&byte| byte != b'/')?;
    let rest = text.get(start..)?;
    let length = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    Some((rest.get(..length)?, start + length))
}

/// Whether there is a process, or a thread, with a number.
pub type IsProcess = fn(u32) -> bool;

/// Goes from `start`, or from the root, where `path` leads.
///
/// # Errors
/// `ENOENT` (a directory, or an empty path), `ENOTDIR`, `ENAMETOOLONG`, `ELOOP`.
#[inline(never)]
pub fn walk<C>(
    tree: &Tree<C>,
    start: Place<C>,
    path: &[u8],
    follow: Follow,
    is_process: IsProcess,
) -> Result<Found<C>, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let root = || Place::Node(tree.root().clone());
    let mut here = if path.starts_with(b"/") { root() } else { start };
    // Links whose targets are not at their ends, each with how far it is; under them the path.
    let (mut links, mut at_path, mut followed, mut slash) =
        (heapless::Vec::<(NodeRef<C>, usize), LINKS>::new(), 0, 0, false);
    loop {
        relax();
        let link = links.last().cloned();
        let (text, at) = match &link {
            Some((node, at)) => (if let NodeKind::Link(target) = &node.kind { &**target } else { &[] }, *at),
            None => (path, at_path),
        };
        let Some((name, end)) = next_name(text, at) else {
            if links.pop().is_some() {
                continue;
            }
            return Ok(Found { directory: here.clone(), last: Last::Root, slash, place: Some(here) });
        };
        if !here.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let ends = next_name(text, end).is_none();
        let is_last = ends && links.len() <= 1 && (link.is_none() || next_name(path, at_path).is_none());
        slash |= is_last && end < text.len();
        match links.last_mut() {
            Some((_, at)) => *at = end,
            None => at_path = end,
        }
        let (place, last) = match step(tree, &here, name, is_process) {
            Err(Errno::ENAMETOOLONG) if is_last && follow == Follow::Never => (None, Last::TooLong),
            found => found?,
        };
        let follows = !is_last || follow == Follow::Always || slash && follow == Follow::BeforeSlash;
        if let Some((node, target)) = place.as_ref().and_then(Place::link).filter(|_| follows) {
            followed = Some(followed + 1).filter(|&links| links <= LINKS).ok_or(Errno::ELOOP)?;
            if ends {
                links.pop();
            }
            if target.starts_with(b"/") {
                here = root();
            }
            links.push((node.clone(), 0)).map_err(|_| Errno::ELOOP)?;
            continue;
        }
        if is_last {
            return Ok(Found { directory: here, last, slash, place });
        }
        here = place.ok_or(Errno::ENOENT)?;
    }
}

/// The place that has a name in a directory, and the name.
fn step<C>(
    tree: &Tree<C>,
    here: &Place<C>,
    name: &[u8],
    is_process: IsProcess,
) -> Result<(Option<Place<C>>, Last), Errno> {
    match name {
        b"." => return Ok((Some(here.clone()), Last::Dot)),
        b".." => {
            let above = match here {
                Place::Node(node) => Place::Node(tree.parent(node)),
                Place::Proc(entry) => entry.parent().map_or_else(|| Place::Node(tree.root().clone()), Place::Proc),
            };
            return Ok((Some(above), Last::DotDot));
        }
        _ => {}
    }
    let last = Last::Name(heapless::Vec::from_slice(name).map_err(|_| Errno::ENAMETOOLONG)?);
    let found = match here {
        Place::Node(node) => tree.find(node, name).map(Place::of),
        Place::Proc(entry) => entry.find(name).filter(|entry| entry.is_there(is_process)).map(Place::Proc),
    };
    Ok((found, last))
}

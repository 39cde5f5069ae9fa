//! Trees against models: names, links and places after random calls, and memory that runs out at each step.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::initrd::tests::{Bytes, tree};
use super::*;
use crate::mm::frame::tests::leaked;
use crate::smp::{Cpu, CpuId};

static LIMIT: FrameLimit = FrameLimit::new(1000);

type Model = BTreeMap<(usize, u8), usize>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Make(usize, u8, bool),
    Link(usize, u8, usize),
    Remove(usize, u8, bool),
    Rename((usize, u8), (usize, u8), u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (directory, name) = (0..12_usize, 0..4_u8);
    let place = (directory.clone(), name.clone());
    prop_oneof![
        3 => (directory.clone(), name.clone(), any::<bool>()).prop_map(|(at, name, is)| Step::Make(at, name, is)),
        1 => (directory.clone(), name.clone(), 0..12_usize).prop_map(|(at, name, node)| Step::Link(at, name, node)),
        2 => (directory, name, any::<bool>()).prop_map(|(at, name, is)| Step::Remove(at, name, is)),
        4 => (place.clone(), place, 0..3_u8).prop_map(|(from, to, how)| Step::Rename(from, to, how)),
    ]
}

/// Nodes by their numbers in the model, and what the model knows of them.
struct World {
    tree: Tree<Bytes>,
    nodes: Vec<NodeRef<Bytes>>,
    names: Model,
    gone: Vec<bool>,
    /// Where a directory has its name, or had it.
    above: Vec<usize>,
}

impl World {
    fn new() -> Self {
        let tree = tree();
        let nodes = Vec::from([tree.root().clone()]);
        Self { tree, nodes, names: Model::new(), gone: Vec::from([false]), above: Vec::from([0]) }
    }

    fn is_directory(&self, node: usize) -> bool {
        self.nodes[node].is_directory()
    }

    /// The directory with this number, or another one.
    fn directory(&self, at: usize) -> usize {
        let directories: Vec<_> = (0..self.nodes.len()).filter(|&node| self.is_directory(node)).collect();
        directories[at % directories.len()]
    }

    fn is_empty(&self, directory: usize) -> bool {
        self.names.range((directory, 0)..=(directory, u8::MAX)).next().is_none()
    }

    /// A directory that was removed is below those that it was below, as on Linux.
    fn is_below(&self, node: usize, above: usize) -> bool {
        node == above || node != 0 && self.is_below(self.above[node], above)
    }

    fn links(&self, node: usize) -> u32 {
        let names = self.names.values().filter(|&&named| named == node).count() as u32;
        let inside = |(&(directory, _), &named): (&(usize, u8), &usize)| directory == node && self.is_directory(named);
        match self.is_directory(node) {
            false => names,
            true if self.gone[node] => 0,
            true => 2 + self.names.iter().filter(|&entry| inside(entry)).count() as u32,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Make(at, name, is_directory) => {
                let at = self.directory(at);
                let (kind, mode) = if is_directory {
                    (NodeKind::Directory, S_IFDIR)
                } else {
                    (NodeKind::File([].as_slice()), 0o100_000)
                };
                let node = self.tree.node(kind, Attributes::new(mode, Moment::default())).unwrap();
                let expected = match self.names.get(&(at, name)) {
                    Some(_) => Err(Errno::EEXIST),
                    None if self.gone[at] => Err(Errno::ENOENT),
                    None => Ok(()),
                };
                assert_eq!(self.tree.link(&self.nodes[at], &[name], &node), expected);
                if expected.is_ok() {
                    self.names.insert((at, name), self.nodes.len());
                    self.nodes.push(node);
                    self.gone.push(false);
                    self.above.push(at);
                }
            }
            Step::Link(at, name, node) => {
                let (at, node) = (self.directory(at), node % self.nodes.len());
                if self.is_directory(node) {
                    return;
                }
                let expected = match self.names.get(&(at, name)) {
                    Some(_) => Err(Errno::EEXIST),
                    None if self.gone[at] || self.links(node) == 0 => Err(Errno::ENOENT),
                    None => Ok(()),
                };
                assert_eq!(self.tree.link(&self.nodes[at], &[name], &self.nodes[node]), expected);
                if expected.is_ok() {
                    self.names.insert((at, name), node);
                }
            }
            Step::Remove(at, name, is_directory) => self.remove(self.directory(at), name, is_directory),
            Step::Rename((from, old), (to, new), how) => {
                self.rename((self.directory(from), old), (self.directory(to), new), how);
            }
        }
    }

    fn remove(&mut self, at: usize, name: u8, is_directory: bool) {
        let found = self.names.get(&(at, name)).copied();
        let expected = match found {
            None => Err(Errno::ENOENT),
            Some(node) if is_directory && !self.is_directory(node) => Err(Errno::ENOTDIR),
            Some(node) if is_directory && !self.is_empty(node) => Err(Errno::ENOTEMPTY),
            Some(node) if !is_directory && self.is_directory(node) => Err(Errno::EISDIR),
            Some(_) => Ok(()),
        };
        let removal = if is_directory { Removal::Directory } else { Removal::File };
        let name_in = NameIn { directory: &self.nodes[at], name: &[name], slash: false };
        assert_eq!(self.tree.unlink(name_in, removal), expected);
        if let (Ok(()), Some(node)) = (expected, found) {
            self.names.remove(&(at, name));
            self.gone[node] = is_directory;
        }
    }

    fn rename(&mut self, from: (usize, u8), to: (usize, u8), how: u8) {
        let renaming = [Renaming::Replace, Renaming::NoReplace, Renaming::Exchange][usize::from(how)];
        let (old, new) = (self.names.get(&from).copied(), self.names.get(&to).copied());
        let exchanges = renaming == Renaming::Exchange;
        let expected = match (old, new) {
            (None, _) => Err(Errno::ENOENT),
            (_, Some(_)) if renaming == Renaming::NoReplace => Err(Errno::EEXIST),
            (_, None) if exchanges => Err(Errno::ENOENT),
            (Some(old), _) if self.is_below(to.0, old) => Err(Errno::EINVAL),
            (_, Some(new)) if self.is_below(from.0, new) && exchanges => Err(Errno::EINVAL),
            (_, Some(new)) if self.is_below(from.0, new) => Err(Errno::ENOTEMPTY),
            (Some(old), Some(new)) if old == new || exchanges => Ok(()),
            (Some(old), Some(new)) => match (self.is_directory(old), self.is_directory(new)) {
                (true, false) => Err(Errno::ENOTDIR),
                (false, true) => Err(Errno::EISDIR),
                _ if !self.is_empty(new) => Err(Errno::ENOTEMPTY),
                _ => Ok(()),
            },
            (Some(_), None) if self.gone[to.0] => Err(Errno::ENOENT),
            (Some(_), None) => Ok(()),
        };
        let (old_name, new_name) = ([from.1], [to.1]);
        let at = |(directory, _): (usize, u8), name| NameIn { directory: &self.nodes[directory], name, slash: false };
        assert_eq!(self.tree.rename(at(from, &old_name), at(to, &new_name), renaming), expected, "{from:?} {to:?}");
        let Some(old) = old.filter(|_| expected.is_ok() && old != new) else { return };
        self.names.insert(to, old);
        self.above[old] = to.0;
        match new {
            Some(new) if exchanges => {
                self.names.insert(from, new);
                self.above[new] = from.0;
            }
            _ => _ = self.names.remove(&from),
        }
        if let Some(new) = new.filter(|_| !exchanges) {
            self.gone[new] = self.is_directory(new);
        }
    }

    /// Compares all that the tree shows with the model.
    fn check(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.attributes().1, self.links(number), "{number}");
            if !self.is_directory(number) {
                continue;
            }
            let mut listed = BTreeMap::new();
            let mut place = 0;
            while let Some(found) = self.tree.next(node, place) {
                assert!(found.place > place);
                place = found.place;
                listed.insert(found.name[0], found.number);
            }
            let of_model = self.names.range((number, 0)..=(number, u8::MAX));
            let of_model = of_model.map(|(&(_, name), &named)| (name, self.nodes[named].number)).collect();
            assert_eq!(listed, of_model, "{number}");
            assert_eq!(node.size(), (listed.len() as u64 + 2) * NAME_SIZE);
            let path = self.tree.path(node);
            assert_eq!(path.is_err(), self.gone[number]);
            if let Ok(path) = path {
                let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
                let found = names.fold(self.tree.root().clone(), |here, name| self.tree.find(&here, name).unwrap());
                assert!(found.is(node));
            }
        }
    }
}

proptest! {
    #[test]
    fn a_tree_has_the_names_of_its_model(steps in prop::collection::vec(step(), 0..60)) {
        // A name is a byte, which is no slash.
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        let World { tree, nodes, .. } = world;
        drop(nodes);
        let pools = tree.pools;
        drop(tree);
        prop_assert_eq!(pools.stats().map(|stats| stats.objects), [0, 0]);
    }
}

#[test]
fn a_chain_of_removed_directories_ends_without_recursion() {
    let tree = tree();
    let mut way = Vec::from([tree.root().clone()]);
    let make = || tree.node(NodeKind::Directory, Attributes::new(S_IFDIR, Moment::default())).unwrap();
    for _ in 0..900 {
        let node = make();
        tree.link(way.last().unwrap(), b"d", &node).unwrap();
        way.push(node);
    }
    for directory in way.iter().rev().skip(1) {
        tree.unlink(NameIn { directory, name: b"d", slash: false }, Removal::Directory).unwrap();
    }
    let last = way.pop().unwrap();
    drop(way);
    assert_eq!(tree.nodes().0, 901);
    assert!(tree.parent(&last).is_removed());
    drop(last);
    assert_eq!(tree.nodes().0, 1);
}

#[test]
fn there_are_no_more_nodes_than_there_may_be() {
    let pools = Box::leak(Box::new(Pools::<Bytes>::new(leaked(2))));
    let tree = Tree::new(pools, 3, &LIMIT, Moment::default).unwrap();
    let make = || tree.node(NodeKind::Other, Attributes::new(0, Moment::default()));
    let (first, second) = (make().unwrap(), make().unwrap());
    assert_eq!(make().err(), Some(Errno::ENOSPC));
    drop(first);
    assert!(make().is_ok());
    drop(second);
}

/// The target of a link that has a frame counts while the link is there, and one that no node was made for does not.
#[test]
fn long_targets_count_as_frames() {
    static LIMIT: FrameLimit = FrameLimit::new(1);
    let pools = Box::leak(Box::new(Pools::<Bytes>::new(leaked(2))));
    let tree = Tree::new(pools, 3, &LIMIT, Moment::default).unwrap();
    let make = |bytes: usize| tree.symbolic_link(&[b'a'; 4000][..bytes], Attributes::new(0, Moment::default()));
    let (short, long) = (make(SHORT).unwrap(), make(SHORT + 1).unwrap());
    assert_eq!((LIMIT.frames(), make(SHORT + 1).err()), ((1, 1), Some(Errno::ENOSPC)));
    drop(long);
    assert_eq!(LIMIT.frames(), (0, 1));
    let other = make(SHORT).unwrap();
    assert_eq!((make(4000).err(), LIMIT.frames()), (Some(Errno::ENOSPC), (0, 1)), "no node is left");
    drop((short, other));
    assert!(make(4000).is_ok());
}

#[test]
fn further_names_count_as_nodes() {
    let pools = Box::leak(Box::new(Pools::<Bytes>::new(leaked(2))));
    let tree = Tree::new(pools, 4, &LIMIT, Moment::default).unwrap();
    let make = || tree.node(NodeKind::Other, Attributes::new(0, Moment::default()));
    let node = make().unwrap();
    for name in [b"a", b"b", b"c"] {
        tree.link(tree.root(), name, &node).unwrap();
    }
    assert_eq!((tree.nodes(), make().err()), ((4, 4), Some(Errno::ENOSPC)));
    assert_eq!(tree.link(tree.root(), b"d", &node), Err(Errno::ENOSPC));
    assert_eq!(node.attributes().1, 3);
    let [old, new] = [b"a", b"d"].map(|name| NameIn { directory: tree.root(), name, slash: false });
    assert_eq!(tree.rename(old, new, Renaming::Replace), Ok(()));
    tree.unlink(new, Removal::File).unwrap();
    assert_eq!((tree.nodes(), make().is_ok()), ((3, 4), true));
}

#[test]
fn a_path_is_no_longer_than_a_page() {
    let tree = tree();
    let mut here = tree.root().clone();
    for (depth, name) in (1..=32).map(|depth| (depth, if depth == 32 { 126 } else { 127 })) {
        let node = tree.node(NodeKind::Directory, Attributes::new(S_IFDIR, Moment::default())).unwrap();
        tree.link(&here, &std::vec![b'n'; name], &node).unwrap();
        here = node;
        assert_eq!(tree.path(&here).map(|path| path.len()), Ok(128 * depth - usize::from(depth == 32)));
    }
    let node = tree.node(NodeKind::Directory, Attributes::new(S_IFDIR, Moment::default())).unwrap();
    tree.link(&here, b"n", &node).unwrap();
    assert_eq!(tree.path(&node), Err(Errno::ENAMETOOLONG));
}

#[test]
fn a_target_is_in_its_node_or_in_a_frame() {
    let tree = tree();
    for length in [0, 1, SHORT, SHORT + 1, PAGE_SIZE - 1] {
        let target = std::vec![b't'; length];
        let node = tree.symbolic_link(&target, Attributes::new(0, Moment::default())).unwrap();
        assert!(matches!(&node.kind, NodeKind::Link(found) if **found == *target));
        assert_eq!(node.size(), length as u64);
    }
    let target = std::vec![b't'; PAGE_SIZE];
    let refused = tree.symbolic_link(&target, Attributes::new(0, Moment::default()));
    assert_eq!(refused.err(), Some(Errno::ENAMETOOLONG));
}

#[test]
fn a_node_that_is_renamed_has_its_links_meanwhile() {
    use core::sync::atomic::AtomicBool;
    let tree = tree();
    let node = tree.node(NodeKind::Other, Attributes::new(0, Moment::default())).unwrap();
    tree.link(tree.root(), b"a", &node).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                assert_eq!(node.attributes().1, 1);
            }
        });
        for _ in 0..2000 {
            let [a, b] = [b"a", b"b"].map(|name| NameIn { directory: tree.root(), name, slash: false });
            tree.rename(a, b, Renaming::Replace).unwrap();
            tree.rename(b, a, Renaming::Replace).unwrap();
        }
        ends.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_call_without_memory_changes_nothing() {
    // With a few more frames at each time, as far as the call comes.
    for frames in 0..12 {
        let (all, cpu) = (leaked(2), Cpu::new(CpuId(0)));
        let pools = Box::leak(Box::new(Pools::<Bytes>::new(all)));
        let mut taken: Vec<_> = core::iter::from_fn(|| all.alloc(&cpu).ok()).collect();
        taken.drain(..frames).for_each(|frame| all.free(&cpu, frame));
        let Ok(tree) = Tree::new(pools, 1000, &LIMIT, Moment::default) else { continue };
        let attributes = Attributes::new(S_IFDIR, Moment::default());
        let mut made = 0;
        let failed = loop {
            let before = tree.root().attributes();
            let node = match tree.node(NodeKind::Other, attributes) {
                Ok(node) => node,
                Err(error) => break error,
            };
            let name = [b'n', made as u8, (made >> 8) as u8];
            if let Err(error) = tree.link(tree.root(), &name, &node) {
                assert_eq!((node.attributes().1, tree.root().attributes()), (0, before));
                if made != 0 {
                    let [old, new] =
                        [b"n\0\0", b"xyz"].map(|name| NameIn { directory: tree.root(), name, slash: false });
                    assert_eq!(tree.rename(old, new, Renaming::Replace), Err(Errno::ENOMEM));
                    assert!(tree.find(tree.root(), b"n\0\0").is_some());
                }
                break error;
            }
            made += 1;
        };
        assert!(matches!(failed, Errno::ENOMEM | Errno::ENOSPC));
        let names = core::iter::successors(tree.next(tree.root(), 0), |found| tree.next(tree.root(), found.place));
        assert_eq!(names.count(), made);
    }
}

//! Calls for memory policies and the places of pages, as a Linux with one node answers them (`mm/mempolicy.c`,
//! `mm/migrate.c`): every page is on node 0, and what is asked to move there is there.

use granule_abi::memory::{
    MPOL_BIND, MPOL_DEFAULT, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED, MPOL_F_NODE, MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT, MPOL_PREFERRED, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE,
};
use granule_arch::addr::{PAGE, VirtAddr};

use super::{Answer, Syscall, read_bytes, read_quads, write_quads};
use crate::linux::errno::Errno;
use crate::linux::process::tree::space_of_thread;
use crate::mm::space::{Access, NodePolicy, Residence, SpaceError, SpaceRef};
use crate::smp::this_cpu;
use crate::uaccess;

/// The flags of a mode, and those after which a policy shows the nodes that it was asked for.
const FLAGS: u32 = MPOL_F_NUMA_BALANCING | SHOW;
const SHOW: u32 = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES;
/// Nodes that arm64 has numbers for.
const NODES: u64 = 16;
/// The one node.
const NODE: u16 = 1;

/// The set of nodes at an address of EL0, of `most - 1` bits. As Linux's `get_nodes` it looks at the words from the last
/// one down, and where fewer than [`NODES`] bits are left below one, at the first word's nodes and no other bits of it.
fn read_nodes(call: &Syscall<'_>, from: VirtAddr, most: u64) -> Result<u16, Errno> {
    let mut bits = most.wrapping_sub(1);
    if bits == 0 || from.0 == 0 {
        return Ok(0);
    }
    if bits > 8 * PAGE {
        return Err(Errno::EINVAL);
    }
    let word = |bits: u64| {
        let [word] = read_quads(VirtAddr(from.0.wrapping_add((bits - 1) / 64 * 8)))?;
        Ok::<u64, Errno>(if bits < 64 { word & ((1 << bits) - 1) } else { word })
    };
    while bits > NODES {
        call.pause_at((bits / 64) as usize)?;
        let (found, left) = (word(bits)?, bits.saturating_sub(64));
        let is_last = left < NODES;
        bits = if is_last { NODES } else { left };
        if is_last && found >> NODES != 0 || !is_last && found != 0 {
            return Err(Errno::EINVAL);
        }
    }
    word(bits).map(|nodes| nodes as u16)
}

/// A mode and its flags (Linux's `sanitize_mpol_flags`).
fn mode_of(word: u64) -> Result<(u32, u32), Errno> {
    let (mode, flags) = (word as u32 & !FLAGS, word as u32 & FLAGS);
    let balances = flags & MPOL_F_NUMA_BALANCING == 0 || matches!(mode, MPOL_BIND | MPOL_PREFERRED_MANY);
    if mode > MPOL_WEIGHTED_INTERLEAVE || flags & SHOW == SHOW || !balances {
        return Err(Errno::EINVAL);
    }
    Ok((mode, flags))
}

/// The policy of a mode for nodes (Linux's `mpol_new`, `mpol_set_nodemask`).
fn policy((mode, flags): (u32, u32), nodes: u16) -> Result<NodePolicy, Errno> {
    let is_local = mode == MPOL_LOCAL || mode == MPOL_PREFERRED && nodes == 0;
    // Relative to the nodes that there are, each is the first one.
    let has_node = nodes & NODE != 0 || nodes != 0 && flags & MPOL_F_RELATIVE_NODES != 0;
    match mode {
        MPOL_DEFAULT if nodes == 0 => Ok(NodePolicy::DEFAULT),
        _ if is_local && nodes == 0 && flags & SHOW == 0 => Ok(NodePolicy::new(MPOL_LOCAL as u16, 0)),
        MPOL_DEFAULT => Err(Errno::EINVAL),
        _ if is_local || !has_node => Err(Errno::EINVAL),
        _ => Ok(NodePolicy::new((mode | flags) as u16, if flags & SHOW != 0 { nodes } else { NODE })),
    }
}

pub(super) fn set_mempolicy(call: &mut Syscall<'_>) -> Answer {
    let mode = mode_of(call.argument::<0>())?;
    let nodes = read_nodes(call, call.address::<1>(), call.argument::<2>())?;
    call.task.policy.set(policy(mode, nodes)?);
    Ok(0)
}

pub(super) fn get_mempolicy(call: &mut Syscall<'_>) -> Answer {
    const KNOWN: u64 = MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED;
    let (to, nodes_to, most) = (call.address::<0>(), call.address::<1>(), call.argument::<2>());
    let (address, flags) = (call.address::<3>().untagged(), call.argument::<4>());
    let has = |flag| flags & flag != 0;
    let is_wrong = flags & !KNOWN != 0 || has(MPOL_F_MEMS_ALLOWED) && has(MPOL_F_NODE | MPOL_F_ADDR);
    if nodes_to.0 != 0 && most == 0 || is_wrong {
        return Err(Errno::EINVAL);
    }
    let space = call.task.space();
    let policy = match (has(MPOL_F_ADDR), has(MPOL_F_MEMS_ALLOWED)) {
        (true, _) => space.policy_at(address).ok_or(Errno::EFAULT)?,
        (_, true) => NodePolicy::new(MPOL_DEFAULT as u16, NODE),
        _ if address.0 != 0 => return Err(Errno::EINVAL),
        _ => call.task.policy.get(),
    };
    let word = match (has(MPOL_F_NODE), has(MPOL_F_ADDR)) {
        // The page is brought.
        (true, true) => {
            let is_killed = || call.is_killed();
            let brought = space.madvise_populate(this_cpu(), address.align_down(PAGE), PAGE, Access::Read, &is_killed);
            brought.map_err(|error| if error == SpaceError::NoMemory { Errno::ENOMEM } else { Errno::EFAULT })?;
            0
        }
        // The node of the next page.
        (true, false) if matches!(policy.mode() & !FLAGS, MPOL_INTERLEAVE | MPOL_WEIGHTED_INTERLEAVE) => 0,
        (true, false) => return Err(Errno::EINVAL),
        _ => policy.mode(),
    };
    if to.0 != 0 {
        uaccess::copy_to_user(to, &word.to_le_bytes())?;
    }
    if nodes_to.0 != 0 { write_nodes(nodes_to, most, policy.nodes()) } else { Ok(0) }
}

/// Stores a set of nodes of `most - 1` bits (Linux's `copy_nodes_to_user`).
fn write_nodes(to: VirtAddr, most: u64, nodes: u64) -> Answer {
    let bytes = most.wrapping_add(62) / 64 * 8;
    if bytes > PAGE {
        return Err(Errno::EINVAL);
    }
    if bytes >= 8 {
        uaccess::clear_user(VirtAddr(to.0.wrapping_add(8)), bytes as usize - 8)?;
        write_quads(to, [nodes])?;
    }
    Ok(0)
}

pub(super) fn mbind(call: &mut Syscall<'_>) -> Answer {
    const KNOWN: u32 = MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL;
    let (start, bytes) = (call.address::<0>().untagged(), call.argument::<1>());
    let mode = mode_of(call.argument::<2>())?;
    let nodes = read_nodes(call, call.address::<3>(), call.argument::<4>())?;
    if call.argument::<5>() as u32 & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let Some(bytes) = whole_range(start, bytes)? else { return Ok(0) };
    call.task.space().set_policy(this_cpu(), start, bytes, policy(mode, nodes)?)?;
    Ok(0)
}

pub(super) fn set_mempolicy_home_node(call: &mut Syscall<'_>) -> Answer {
    let (start, bytes) = (call.address::<0>(), call.argument::<1>());
    // Node 0, and no flags.
    if call.argument::<2>() != 0 || call.argument::<3>() != 0 {
        return Err(Errno::EINVAL);
    }
    let Some(bytes) = whole_range(start, bytes)? else { return Ok(0) };
    match call.task.space().set_home(this_cpu(), start, bytes, [MPOL_BIND, MPOL_PREFERRED_MANY]) {
        Ok(true) => Ok(0),
        // Beyond the space nothing is mapped.
        Ok(false) => Err(Errno::ENOENT),
        Err(SpaceError::NotAllowed) => Err(Errno::ENOTSUP),
        Err(error) => Err(error.into()),
    }
}

/// The bytes of a range, rounded up to pages: none where they wrap to nothing.
fn whole_range(start: VirtAddr, bytes: u64) -> Result<Option<u64>, Errno> {
    let bytes = bytes.wrapping_add(PAGE - 1) & !(PAGE - 1);
    if !start.is_aligned(PAGE) || start.0.checked_add(bytes).is_none() {
        return Err(Errno::EINVAL);
    }
    Ok((bytes != 0).then_some(bytes))
}

/// The space of the thread that the first argument is the number of, 0 for the caller's own.
fn space_of(call: &Syscall<'_>) -> Result<SpaceRef, Errno> {
    let id = match call.argument::<0>() as i32 {
        0 => call.task.id(),
        id => u32::try_from(id).map_err(|_| Errno::ESRCH)?,
    };
    space_of_thread(id).ok_or(Errno::ESRCH)?.ok_or(Errno::EINVAL)
}

/// All pages are where they may be moved to.
pub(super) fn migrate_pages(call: &mut Syscall<'_>) -> Answer {
    let most = call.argument::<1>();
    read_nodes(call, call.address::<2>(), most)?;
    let to = read_nodes(call, call.address::<3>(), most)?;
    space_of(call)?;
    if to & NODE == 0 { Err(Errno::EINVAL) } else { Ok(0) }
}

/// Stores for each of several pages where it is, which is where it may be moved to.
pub(super) fn move_pages(call: &mut Syscall<'_>) -> Answer {
    let (count, array, nodes) = (call.argument::<1>(), call.address::<2>(), call.address::<3>());
    if call.argument::<5>() as u32 & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    let space = space_of(call)?;
    let place = |of: VirtAddr, index: u64, size: u64| VirtAddr(of.0.wrapping_add(index.wrapping_mul(size)));
    for index in 0..count {
        call.pause_at(index as usize)?;
        let [page] = read_quads(place(array, index, 8))?;
        let mut page = VirtAddr(page);
        if nodes.0 != 0 {
            if read_bytes(place(nodes, index, 4))? != [0; 4] {
                return Err(Errno::ENODEV);
            }
            page = page.untagged();
        }
        let status = match space.residence(page) {
            Residence::There => 0,
            Residence::Absent => Errno::ENOENT.returned() as i32,
            Residence::NotMapped | Residence::Special => Errno::EFAULT.returned() as i32,
        };
        uaccess::copy_to_user(place(call.address::<4>(), index, 4), &status.to_le_bytes())?;
    }
    Ok(0)
}

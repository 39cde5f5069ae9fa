//! TLBI operands as the hardware reads them: which entries of a TLB an instruction takes, by its bits alone.
//!
//! Arm ARM C5.5 (operands), D8.16.5 (TTL), D8.16.6 (range operations). Nothing that the issuer knew is used, so a field
//! in the wrong place covers the wrong addresses here as it does there:
//! - an address is VA\[55:12\] for every granule, the base of a range is counted in pages of TG;
//! - a level hint that is not the leaf's level, or names another granule, leaves the entry where it is;
//! - a range whose hint is a block level and whose base is not aligned to that block need not invalidate anything.

use std::ops::RangeInclusive;

use granule_arch::tlbi::Instruction;
use granule_pgtable::Geometry;

use crate::features::Features;
use crate::tlb::{Held, Kind};

/// Which TLBs it reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(crate) enum Scope {
    /// The issuing CPU's.
    Local,
    /// All of the inner-shareable domain.
    InnerShareable,
}

/// Which levels it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Levels {
    /// Leaves, and what walk caches hold of the tables above them.
    All,
    /// Leaves alone.
    Last,
}

/// Which address spaces it takes entries of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    /// All of them, and global ones.
    Any,
    /// The space of one ASID; by address, global ones as well.
    Of(u16),
}

/// An instruction, decoded: the entries that it takes, and from whose TLBs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Decoded {
    pub(crate) scope: Scope,
    levels: Levels,
    /// First to last byte; `None` is everything.
    addresses: Option<RangeInclusive<u64>>,
    /// The address spaces whose entries it takes.
    space: Space,
    /// The leaf level that it is limited to.
    level: Option<u8>,
    /// Why nothing need be invalidated at all.
    void: Option<&'static str>,
}

/// Why an instruction leaves an entry alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Miss {
    /// It names other addresses.
    Elsewhere,
    /// It did not reach the other CPU.
    Local,
    /// Its hint has this level.
    Hint(u8),
    /// It takes leaves only, and this is a table.
    LastLevelOnly,
    /// It is for another address space.
    Asid,
    /// Its operand is not one that must do anything.
    Void(&'static str),
}

/// Reads `instruction` as a machine with `features` and tables of `G` does.
///
/// # Errors
/// The instruction is not defined on that machine.
pub(crate) fn decode<G: Geometry>(instruction: Instruction, features: &Features) -> Result<Decoded, &'static str> {
    use Levels::{All, Last};
    use Scope::{InnerShareable, Local};
    let everything =
        |scope| Decoded { scope, levels: All, addresses: None, space: Space::Any, level: None, void: None };
    // An operation of one ASID, which bits 63:48 of its operand name; the rest is read like that for every ASID.
    let of_asid = |bits: u64, decode: &dyn Fn(u64) -> Result<Decoded, &'static str>| {
        Ok(Decoded { space: Space::Of((bits >> 48) as u16), ..decode(bits << 16 >> 16)? })
    };
    match instruction {
        Instruction::Vmalle1is => Ok(everything(InnerShareable)),
        Instruction::Vmalle1 => Ok(everything(Local)),
        Instruction::Vaae1is(operand) => address::<G>(operand.bits(), InnerShareable, All, features),
        Instruction::Vaale1is(operand) => address::<G>(operand.bits(), InnerShareable, Last, features),
        Instruction::Vaae1(operand) => address::<G>(operand.bits(), Local, All, features),
        Instruction::Vaale1(operand) => address::<G>(operand.bits(), Local, Last, features),
        Instruction::Aside1is(asid) => Ok(Decoded { space: Space::Of(asid.number()), ..everything(InnerShareable) }),
        Instruction::Vae1is(operand) => {
            of_asid(operand.bits(), &|bits| address::<G>(bits, InnerShareable, All, features))
        }
        Instruction::Vale1is(operand) => {
            of_asid(operand.bits(), &|bits| address::<G>(bits, InnerShareable, Last, features))
        }
        Instruction::Vale1(operand) => of_asid(operand.bits(), &|bits| address::<G>(bits, Local, Last, features)),
        Instruction::Rvaae1is(operand) => range::<G>(operand.bits(), InnerShareable, All, features),
        Instruction::Rvaale1is(operand) => range::<G>(operand.bits(), InnerShareable, Last, features),
        Instruction::Rvae1is(operand) => {
            of_asid(operand.bits(), &|bits| range::<G>(bits, InnerShareable, All, features))
        }
        Instruction::Rvale1is(operand) => {
            of_asid(operand.bits(), &|bits| range::<G>(bits, InnerShareable, Last, features))
        }
    }
}

/// The granule's number in TTL and TG fields.
fn granule<G: Geometry>() -> u64 {
    u64::from((G::PAGE_SHIFT - 10) / 2)
}

/// `value` whose bit `top` is the sign, in 64 bits.
fn sign_extended(value: u64, top: u32) -> u64 {
    let above = 63 - top;
    ((value << above).cast_signed() >> above).cast_unsigned()
}

fn address<G: Geometry>(bits: u64, scope: Scope, levels: Levels, features: &Features) -> Result<Decoded, &'static str> {
    if bits >> 48 != 0 {
        return Err("bits 63:48 of an operation for every ASID are reserved, and set");
    }
    let first = sign_extended((bits & ((1 << 44) - 1)) << 12, 55) & !(G::PAGE_SIZE - 1);
    let (level, void) = match (bits >> 46 & 3, (bits >> 44 & 3) as u8) {
        // Without FEAT_TTL the field is not looked at.
        _ if !features.ttl => (None, None),
        (0, _) => (None, None),
        (named, _) if named != granule::<G>() => (None, Some("its TTL names another granule")),
        (_, 0) => (None, Some("its TTL is a reserved value")),
        (_, level) => (Some(level), None),
    };
    let addresses = Some(first..=first | (G::PAGE_SIZE - 1));
    Ok(Decoded { scope, levels, addresses, space: Space::Any, level, void })
}

fn range<G: Geometry>(bits: u64, scope: Scope, levels: Levels, features: &Features) -> Result<Decoded, &'static str> {
    if !features.tlb_range {
        return Err("range operations are undefined without FEAT_TLBIRANGE");
    }
    if bits >> 48 != 0 {
        return Err("bits 63:48 of an operation for every ASID are reserved, and set");
    }
    let first = sign_extended((bits & ((1 << 37) - 1)) << G::PAGE_SHIFT, 36 + G::PAGE_SHIFT);
    let (scale, num, level) = (bits >> 44 & 3, bits >> 39 & 31, (bits >> 37 & 3) as u8);
    let size = ((num + 1) << (5 * scale + 1)) << G::PAGE_SHIFT;
    let void = if bits >> 46 & 3 != granule::<G>() {
        Some("its TG is not the granule of the tables")
    } else if level != 0 && first & (G::entry_size(level) - 1) != 0 {
        Some("its base is not aligned to a leaf of the level that its TTL names")
    } else {
        None
    };
    let addresses = Some(first..=first.saturating_add(size - 1));
    Ok(Decoded { scope, levels, addresses, space: Space::Any, level: (level != 0).then_some(level), void })
}

impl Decoded {
    /// The first and the last address that it can concern.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        self.addresses.as_ref().map_or((0, u64::MAX), |addresses| (*addresses.start(), *addresses.end()))
    }

    /// Whether an entry that `holder` may have goes away when `issuer` executes this, and if not, why not.
    pub(crate) fn takes(&self, issuer: usize, holder: usize, held: &Held) -> Result<(), Miss> {
        if let Some(why) = self.void {
            return Err(Miss::Void(why));
        }
        if let Some(addresses) = &self.addresses
            && (held.last() < *addresses.start() || held.start > *addresses.end())
        {
            return Err(Miss::Elsewhere);
        }
        // Steps of a walk belong to the space, and so do leaves that are not global; global ones are any ASID's to take
        // by address, and none's to take as a whole.
        if let Space::Of(asid) = self.space
            && (if held.is_global() { self.addresses.is_none() } else { held.asid != asid })
        {
            return Err(Miss::Asid);
        }
        match held.kind {
            Kind::Table if self.levels == Levels::Last => return Err(Miss::LastLevelOnly),
            // The tables on the way to a leaf of the level named.
            Kind::Table => {
                if let Some(level) = self.level.filter(|&level| held.level >= level) {
                    return Err(Miss::Hint(level));
                }
            }
            Kind::Leaf => {
                if let Some(level) = self.level.filter(|&level| held.level != level) {
                    return Err(Miss::Hint(level));
                }
            }
        }
        if self.scope == Scope::Local && issuer != holder { Err(Miss::Local) } else { Ok(()) }
    }
}

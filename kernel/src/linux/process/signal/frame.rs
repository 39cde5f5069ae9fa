//! The frame on a handler's stack, and its use at the return.
//!
//! The layout is Linux's `struct rt_sigframe` (`granule_abi::signal`), with the records for floating point and, after a
//! fault, for its syndrome. Above it is a frame record, so that a backtrace continues from the handler to the
//! interrupted code. A program may write anything there, so everything is checked at the return.

use core::mem::offset_of;

use granule_abi::Errno;
use granule_abi::signal::{
    ContextHeader, ESR_MAGIC, EXTRA_MAGIC, EsrContext, ExtraContext, FPSIMD_MAGIC, FpsimdContext, Records, SS_DISABLE,
    SS_ONSTACK, SigContext, SigFrame, SigInfo, SigStack, UContext,
};

use crate::sched::FpState;
use crate::trap::SPSR_BTYPE;

/// The registers of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextRegisters {
    /// x0 to x30.
    pub x: [u64; 31],
    /// SP.
    pub sp: u64,
    /// PC.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
}

/// ESR_EL1 and FAR_EL1 of the last fault that a signal reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultRecord {
    /// FAR_EL1.
    pub address: u64,
    /// ESR_EL1; 0 for no fault.
    pub esr: u64,
}

/// The state that a handler interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// The registers.
    pub registers: ContextRegisters,
    /// Those of floating point.
    pub fp: FpState,
    /// The signals that were blocked.
    pub mask: u64,
    /// The alternative stack.
    pub stack: SigStack,
}

/// Mode and masks of PSTATE; all 0 is EL0 in AArch64 with nothing masked.
const MODE_AND_MASKS: u64 = 0x1f | 0xf << 6;
/// The bits of PSTATE that a program may choose: NZCV, DIT, SSBS, BTYPE, and the tag checks' TCO.
const FREE: u64 = 0xf << 28 | 1 << 25 | 1 << 24 | 1 << 12 | SPSR_BTYPE;
/// x29 and x30 of the interrupted code, above the frame.
const FRAME_RECORD: u64 = 16;
const ALIGN: u64 = 16;
/// The offset of the records in a frame, and their most bytes.
const RECORDS: usize = offset_of!(SigFrame, context) + offset_of!(UContext, context) + offset_of!(SigContext, records);
const RECORDS_SIZE: usize = size_of::<Records>();
/// Bytes of the longest frame that is written: the rest of the 4 KiB is not touched.
const WRITTEN: usize = RECORDS + size_of::<FpsimdContext>() + size_of::<EsrContext>() + size_of::<ContextHeader>();

/// Whether SP is on the alternative stack.
pub fn is_on_stack(stack: &SigStack, sp: u64) -> bool {
    sp > stack.base && sp - stack.base <= stack.size
}

/// The alternative stack as a program reads it, with its current flags.
pub fn reported(stack: &SigStack, sp: u64) -> SigStack {
    let flags = match stack.size {
        0 => SS_DISABLE,
        _ if is_on_stack(stack, sp) => SS_ONSTACK,
        _ => 0,
    };
    SigStack { flags, ..*stack }
}

/// The place of a frame: its address, which is the handler's SP, and the frame record's. `None` where it does not fit
/// between address 0 and SP.
pub fn place(sp: u64) -> Option<(u64, u64)> {
    let record = sp.checked_sub(FRAME_RECORD)? & !(ALIGN - 1);
    let frame = record.checked_sub(size_of::<SigFrame>() as u64)? & !(ALIGN - 1);
    Some((frame, record))
}

/// A frame in the kernel, ready to be copied.
#[repr(C, align(16))]
pub struct Image([u8; WRITTEN]);

impl Image {
    /// The frame for a handler that interrupts `before`.
    pub fn new(info: &SigInfo, before: &Interrupted, fault: FaultRecord) -> Self {
        let mut image = Self([0; WRITTEN]);
        let ContextRegisters { x, sp, pc, pstate } = before.registers;
        let uc = offset_of!(SigFrame, context);
        let mc = uc + offset_of!(UContext, context);
        image.put(offset_of!(SigFrame, info), info_bytes(info));
        let stack = reported(&before.stack, sp);
        image.put_quad(uc + offset_of!(UContext, stack), stack.base);
        image.put(uc + offset_of!(UContext, stack) + offset_of!(SigStack, flags), stack.flags.to_le_bytes());
        image.put_quad(uc + offset_of!(UContext, stack) + offset_of!(SigStack, size), stack.size);
        image.put_quad(uc + offset_of!(UContext, mask), before.mask);
        image.put_quad(mc + offset_of!(SigContext, fault_address), fault.address);
        image.put_all(mc + offset_of!(SigContext, registers), x.map(u64::to_le_bytes).as_flattened());
        image.put_quad(mc + offset_of!(SigContext, sp), sp);
        image.put_quad(mc + offset_of!(SigContext, pc), pc);
        image.put_quad(mc + offset_of!(SigContext, pstate), pstate);

        let mut at = RECORDS;
        image.header(at, FPSIMD_MAGIC, size_of::<FpsimdContext>());
        image.put(at + offset_of!(FpsimdContext, fpsr), before.fp.fpsr.to_le_bytes());
        image.put(at + offset_of!(FpsimdContext, fpcr), before.fp.fpcr.to_le_bytes());
        image.put_all(at + offset_of!(FpsimdContext, registers), before.fp.v.map(u128::to_le_bytes).as_flattened());
        at += size_of::<FpsimdContext>();
        if fault.esr != 0 {
            image.header(at, ESR_MAGIC, size_of::<EsrContext>());
            image.put_quad(at + offset_of!(EsrContext, esr), fault.esr);
        }
        // The header that ends the records is all zero.
        image
    }

    /// Its bytes, from the frame's address on.
    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The state in the frame that `read` copies whole, if its records are those that [`Self::new`] writes: what
    /// [`restore`] finds in it field by field. `None` for every other frame.
    pub fn restored(read: impl FnOnce(&mut [u8]) -> Result<(), Errno>) -> Option<Restored> {
        const UC: usize = offset_of!(SigFrame, context);
        const MC: usize = UC + offset_of!(UContext, context);
        const FP: usize = RECORDS + offset_of!(FpsimdContext, registers);
        let mut image = Self([0; WRITTEN]);
        read(&mut image.0).ok()?;
        let second = RECORDS + size_of::<FpsimdContext>();
        let has_records = image.has_header(RECORDS, FPSIMD_MAGIC, size_of::<FpsimdContext>())
            && (image.has_header(second, 0, 0)
                || image.has_header(second, ESR_MAGIC, size_of::<EsrContext>())
                    && image.has_header(second + size_of::<EsrContext>(), 0, 0));
        let pstate = image.quad(MC + offset_of!(SigContext, pstate));
        if !has_records || pstate & MODE_AND_MASKS != 0 {
            return None;
        }
        let (x, _) = image.0[MC + offset_of!(SigContext, registers)..].as_chunks::<8>();
        let (v, _) = image.0[FP..].as_chunks::<16>();
        let registers = ContextRegisters {
            x: x.first_chunk()?.map(u64::from_le_bytes),
            sp: image.quad(MC + offset_of!(SigContext, sp)),
            pc: image.quad(MC + offset_of!(SigContext, pc)),
            pstate: pstate & FREE,
        };
        let state = image.quad(RECORDS + offset_of!(FpsimdContext, fpsr));
        let fp =
            FpState { v: v.first_chunk()?.map(u128::from_le_bytes), fpsr: state as u32, fpcr: (state >> 32) as u32 };
        let stack = SigStack {
            base: image.quad(UC + offset_of!(UContext, stack) + offset_of!(SigStack, base)),
            flags: image.quad(UC + offset_of!(UContext, stack) + offset_of!(SigStack, flags)) as u32 as i32,
            padding: 0,
            size: image.quad(UC + offset_of!(UContext, stack) + offset_of!(SigStack, size)),
        };
        Some(Restored { mask: Some(image.quad(UC + offset_of!(UContext, mask))), registers, rest: Ok((fp, stack)) })
    }

    fn quad(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn has_header(&self, at: usize, magic: u32, size: usize) -> bool {
        self.quad(at) == (size as u64) << 32 | u64::from(magic)
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.put_all(at, &bytes);
    }

    fn put_all(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_quad(&mut self, at: usize, value: u64) {
        self.put(at, value.to_le_bytes());
    }

    fn header(&mut self, at: usize, magic: u32, size: usize) {
        self.put(at, magic.to_le_bytes());
        self.put(at + 4, (size as u32).to_le_bytes());
    }
}

/// The bytes of a [`SigInfo`], field by field.
pub fn info_bytes(info: &SigInfo) -> [u8; size_of::<SigInfo>()] {
    let mut bytes = [0; size_of::<SigInfo>()];
    for (place, value) in bytes.chunks_exact_mut(4).zip([info.signal, info.errno, info.code]) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    for (place, value) in bytes[offset_of!(SigInfo, fields)..].chunks_exact_mut(8).zip(info.fields) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The state after a handler's return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The signals to block; `None` where they could not be read.
    pub mask: Option<u64>,
    /// The registers. Those that could not be read are 0, and PSTATE is valid for EL0.
    pub registers: ContextRegisters,
    /// Floating point and the alternative stack; or `EFAULT`, or `EINVAL`: the frame is invalid, or has state that no
    /// program may have.
    pub rest: Result<(FpState, SigStack), Errno>,
}

/// A frame's fields, read in Linux's order (`restore_sigframe`).
struct FrameReader<R> {
    /// Where the frame is.
    frame: u64,
    read: R,
}

impl<R: FnMut(u64, &mut [u8]) -> Result<(), Errno>> FrameReader<R> {
    fn quad(&mut self, offset: usize) -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        (self.read)(self.frame.wrapping_add(offset as u64), &mut bytes).map(|()| u64::from_le_bytes(bytes))
    }

    fn word_at(&mut self, address: u64) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        (self.read)(address, &mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    /// The registers; and the error of the last one that could not be read, which is 0 then.
    fn registers(&mut self) -> (ContextRegisters, Result<(), Errno>) {
        const CONTEXT: usize = offset_of!(SigFrame, context) + offset_of!(UContext, context);
        let mut result = Ok(());
        let mut quad = |offset: usize| match self.quad(CONTEXT + offset) {
            Ok(quad) => quad,
            Err(error) => {
                result = Err(error);
                0
            }
        };
        let mut x = [0; 31];
        for (index, register) in x.iter_mut().enumerate() {
            *register = quad(offset_of!(SigContext, registers) + 8 * index);
        }
        let (sp, pc) = (quad(offset_of!(SigContext, sp)), quad(offset_of!(SigContext, pc)));
        let pstate = quad(offset_of!(SigContext, pstate));
        if pstate & MODE_AND_MASKS != 0 {
            result = Err(Errno::EINVAL);
        }
        (ContextRegisters { x, sp, pc, pstate: pstate & FREE }, result)
    }

    fn stack(&mut self) -> Result<SigStack, Errno> {
        const STACK: usize = offset_of!(SigFrame, context) + offset_of!(UContext, stack);
        Ok(SigStack {
            base: self.quad(STACK + offset_of!(SigStack, base))?,
            flags: self.quad(STACK + offset_of!(SigStack, flags))? as u32 as i32,
            padding: 0,
            size: self.quad(STACK + offset_of!(SigStack, size))?,
        })
    }

    /// The address of the record for floating point, which each frame has. A record for a syndrome is skipped, and one
    /// that points to more records after the frame is followed; others are not supported here, and refused.
    fn find_fp(&mut self) -> Result<u64, Errno> {
        let mut records = RecordsPlace { start: self.frame.wrapping_add(RECORDS as u64), size: RECORDS_SIZE as u64 };
        let (mut fp, mut extra, mut offset) = (None, false, 0);
        loop {
            let left = records.size.checked_sub(offset).ok_or(Errno::EINVAL)?;
            if left < size_of::<ContextHeader>() as u64 || !offset.is_multiple_of(16) {
                return Err(Errno::EINVAL);
            }
            let at = records.start.wrapping_add(offset);
            let (magic, size) = (self.word_at(at)?, u64::from(self.word_at(at.wrapping_add(4))?));
            if size > left {
                return Err(Errno::EINVAL);
            }
            match magic {
                0 if size == 0 => return fp.ok_or(Errno::EINVAL),
                FPSIMD_MAGIC if fp.is_none() && size == size_of::<FpsimdContext>() as u64 => fp = Some(at),
                ESR_MAGIC if size >= size_of::<ContextHeader>() as u64 => {}
                EXTRA_MAGIC if !extra => {
                    extra = true;
                    records = self.extra(at, size, left)?;
                    offset = 0;
                    continue;
                }
                _ => return Err(Errno::EINVAL),
            }
            offset += size;
        }
    }

    /// The address of the further records, which a record of this kind, `size` bytes at `at`, points to.
    fn extra(&mut self, at: u64, size: u64, left: u64) -> Result<RecordsPlace, Errno> {
        /// A header that ends records, with its padding.
        const END: u64 = 16;
        /// Bytes that a frame with all its records may have (`SIGFRAME_MAXSZ`).
        const MOST: u64 = 256 << 10;
        if size < size_of::<ExtraContext>() as u64 || left - size < END {
            return Err(Errno::EINVAL);
        }
        let address = offset_of!(ExtraContext, address) as u64;
        let low = self.word_at(at.wrapping_add(address))?;
        let high = self.word_at(at.wrapping_add(address + 4))?;
        let start = u64::from(high) << 32 | u64::from(low);
        let bytes = u64::from(self.word_at(at.wrapping_add(offset_of!(ExtraContext, size) as u64))?);
        let end = at.wrapping_add(size);
        let is_end = (self.word_at(end)?, self.word_at(end.wrapping_add(4))?) == (0, 0);
        let behind = end.wrapping_add(END);
        let most = MOST.saturating_sub(behind.wrapping_sub(self.frame));
        let fits = bytes <= most && start.is_multiple_of(16) && bytes.is_multiple_of(16);
        if is_end && fits && start == behind { Ok(RecordsPlace { start, size: bytes }) } else { Err(Errno::EINVAL) }
    }

    fn fp(&mut self, at: u64) -> Result<FpState, Errno> {
        let fpsr = self.word_at(at.wrapping_add(offset_of!(FpsimdContext, fpsr) as u64))?;
        let fpcr = self.word_at(at.wrapping_add(offset_of!(FpsimdContext, fpcr) as u64))?;
        let mut v = [0; 32];
        for (index, register) in v.iter_mut().enumerate() {
            let offset = offset_of!(FpsimdContext, registers) + 16 * index;
            let mut bytes = [0; 16];
            (self.read)(at.wrapping_add(offset as u64), &mut bytes)?;
            *register = u128::from_le_bytes(bytes);
        }
        Ok(FpState { v, fpsr, fpcr })
    }
}

/// The place of records, and their most bytes.
struct RecordsPlace {
    start: u64,
    size: u64,
}

/// Restores the state after the return from the handler of the frame at `frame`. `read` copies from an address.
pub fn restore(frame: u64, read: impl FnMut(u64, &mut [u8]) -> Result<(), Errno>) -> Restored {
    let mut reader = FrameReader { frame, read };
    let mask = reader.quad(offset_of!(SigFrame, context) + offset_of!(UContext, mask));
    let (registers, result) = reader.registers();
    let mut rest = || {
        mask.and(result)?;
        let at = reader.find_fp()?;
        Ok((reader.fp(at)?, reader.stack()?))
    };
    Restored { mask: mask.ok(), registers, rest: rest() }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use granule_abi::Errno;
    use granule_abi::signal::{
        ESR_MAGIC, EXTRA_MAGIC, FPSIMD_MAGIC, SEGV_MAPERR, SIGSEGV, SS_DISABLE, SS_ONSTACK, SigFrame, SigInfo, SigStack,
    };
    use proptest::prelude::*;

    use super::{
        ContextRegisters, FaultRecord, FpState, Image, Interrupted, RECORDS, Restored, place, reported, restore,
    };

    const STACK: SigStack = SigStack { base: 0x10_0000, flags: 0, padding: 0, size: 0x4000 };

    fn before() -> Interrupted {
        Interrupted {
            registers: ContextRegisters {
                x: core::array::from_fn(|index| 0x1_0000 + index as u64),
                sp: 0x7fff_0000,
                pc: 0x40_1234,
                pstate: 0x6000_0000,
            },
            fp: FpState { v: core::array::from_fn(|index| u128::MAX - index as u128), fpsr: 0x1f, fpcr: 0xc0_0000 },
            mask: 0x8000_0000_0000_0001,
            stack: STACK,
        }
    }

    fn bytes(fault: FaultRecord) -> Vec<u8> {
        let info = SigInfo::new(SIGSEGV, SEGV_MAPERR).with_address(0xdead_b000);
        let mut bytes = Image::new(&info, &before(), fault).bytes().to_vec();
        bytes.resize(size_of::<SigFrame>(), 0xee);
        bytes
    }

    /// Where the frame is.
    const AT: u64 = 0x7ffe_e000;

    fn all(frame: &[u8]) -> Restored {
        let by_field = restore(AT, |at, to| {
            let at = usize::try_from(at - AT).unwrap();
            to.copy_from_slice(frame.get(at..at + to.len()).ok_or(Errno::EFAULT)?);
            Ok(())
        });
        let whole = Image::restored(|to| {
            to.copy_from_slice(frame.get(..to.len()).ok_or(Errno::EFAULT)?);
            Ok(())
        });
        if let Some(whole) = whole {
            assert_eq!(whole, by_field);
        }
        by_field
    }

    fn restored(frame: &[u8]) -> Result<Interrupted, Errno> {
        let Restored { mask, registers, rest } = all(frame);
        rest.map(|(fp, stack)| Interrupted { registers, fp, mask: mask.unwrap(), stack })
    }

    fn quad(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The offsets as a C program on arm64 has them.
    #[test]
    fn a_frame_lies_as_linux_lays_it() {
        let frame = bytes(FaultRecord { address: 0xdead_b000, esr: 0x9200_0046 });
        assert_eq!(quad(&frame, 0) as u32, SIGSEGV);
        assert_eq!(quad(&frame, 8) as i32, SEGV_MAPERR);
        assert_eq!(quad(&frame, 16), 0xdead_b000, "si_addr");
        assert_eq!((quad(&frame, 128 + 16), quad(&frame, 128 + 32)), (0x10_0000, 0x4000), "uc_stack");
        assert_eq!(quad(&frame, 128 + 40), before().mask, "uc_sigmask");
        let context = 128 + 176;
        assert_eq!(quad(&frame, context), 0xdead_b000, "fault_address");
        assert_eq!(quad(&frame, context + 8 + 8 * 30), 0x1_001e, "regs[30]");
        assert_eq!(quad(&frame, context + 256), 0x7fff_0000, "sp");
        assert_eq!(quad(&frame, context + 264), 0x40_1234, "pc");
        assert_eq!(quad(&frame, context + 272), 0x6000_0000, "pstate");
        assert_eq!(RECORDS, context + 288);
        assert_eq!(quad(&frame, RECORDS), 528 << 32 | u64::from(FPSIMD_MAGIC));
        assert_eq!(quad(&frame, RECORDS + 8), 0xc0_0000 << 32 | 0x1f, "fpsr, fpcr");
        assert_eq!(quad(&frame, RECORDS + 16 + 16), u64::MAX - 1, "v1");
        assert_eq!(quad(&frame, RECORDS + 528), 16 << 32 | 0x4553_5201);
        assert_eq!(quad(&frame, RECORDS + 536), 0x9200_0046);
        assert_eq!(quad(&frame, RECORDS + 544), 0, "the end");
    }

    #[test]
    fn a_return_goes_on_with_what_was_interrupted() {
        for esr in [0, 0x9200_0046] {
            let frame = bytes(FaultRecord { address: 1, esr });
            assert_eq!(restored(&frame), Ok(before()));
            let whole = Image::restored(|to| {
                to.copy_from_slice(&frame[..to.len()]);
                Ok(())
            });
            assert_eq!(whole, Some(all(&frame)), "in one piece");
        }
    }

    #[test]
    fn what_no_program_may_have_is_refused() {
        let pstate = 128 + 176 + 272;
        for bad in [0x5, 0x3c0, 0x10, 0x80] {
            let mut frame = bytes(FaultRecord::default());
            frame[pstate..pstate + 8].copy_from_slice(&(bad as u64).to_le_bytes());
            assert_eq!(restored(&frame), Err(Errno::EINVAL), "pstate {bad:#x}");
        }
        let mut frame = bytes(FaultRecord::default());
        frame[pstate..pstate + 8].copy_from_slice(&0xffff_ffff_f060_1c20_u64.to_le_bytes());
        frame[pstate] = 0;
        frame[pstate + 1] = 0x1c;
        assert_eq!(restored(&frame).unwrap().registers.pstate, 0xf000_1c00, "bits that mean nothing here go");
        assert_eq!(restored(&frame[..4000]).map(drop), Ok(()), "what is not used need not be there");
        assert_eq!(restored(&frame[..800]), Err(Errno::EFAULT));
    }

    #[test]
    fn records_that_are_none_are_refused() {
        let with = |at: usize, value: u32| {
            let mut frame = bytes(FaultRecord { address: 0, esr: 1 });
            frame[RECORDS + at..RECORDS + at + 4].copy_from_slice(&value.to_le_bytes());
            restored(&frame).map(drop)
        };
        assert_eq!(with(0, 0), Err(Errno::EINVAL), "an end with a size");
        assert_eq!(with(4, 0), Err(Errno::EINVAL), "no size");
        assert_eq!(with(4, 8), Err(Errno::EINVAL), "not aligned");
        assert_eq!(with(4, 512), Err(Errno::EINVAL), "another size");
        assert_eq!(with(4, 8192), Err(Errno::EINVAL), "behind the end");
        assert_eq!(with(0, 0x5356_4501), Err(Errno::EINVAL), "one of SVE, and none of floating point");
        assert_eq!(with(528, FPSIMD_MAGIC), Err(Errno::EINVAL), "twice");
        assert_eq!(with(528, 0x5356_4501), Err(Errno::EINVAL), "one of SVE");
        assert_eq!(with(528, 0x1234_5678), Err(Errno::EINVAL), "one that is unknown");
    }

    #[test]
    fn a_refused_frame_gives_its_mask_and_registers() {
        let mut frame = bytes(FaultRecord { address: 0, esr: 1 });
        frame[RECORDS + 4] = 8;
        let Restored { mask, registers, rest } = all(&frame);
        assert_eq!((mask, registers, rest), (Some(before().mask), before().registers, Err(Errno::EINVAL)));
        frame[128 + 176 + 272] = 5;
        assert_eq!(all(&frame).registers, before().registers, "but for the mode");
        // Up to x1: the others are zero.
        let cut = all(&frame[..128 + 176 + 8 + 16]);
        let x = core::array::from_fn(|index| if index < 2 { before().registers.x[index] } else { 0 });
        assert_eq!((cut.mask, cut.rest), (Some(before().mask), Err(Errno::EFAULT)));
        assert_eq!(cut.registers, ContextRegisters { x, sp: 0, pc: 0, pstate: 0 });
        assert_eq!(all(&frame[..168]).mask, None);
    }

    /// A frame whose record of floating point is after a record that points to it.
    fn with_more(change: impl Fn(&mut [u32; 12])) -> Result<Interrupted, Errno> {
        let mut frame = bytes(FaultRecord::default());
        frame.copy_within(RECORDS..RECORDS + 544, RECORDS + 48);
        let start = AT + RECORDS as u64 + 48;
        let mut words = [EXTRA_MAGIC, 32, start as u32, (start >> 32) as u32, 544, 0, 0, 0, 0, 0, 0, 0];
        change(&mut words);
        for (place, word) in frame[RECORDS..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        restored(&frame)
    }

    #[test]
    fn records_may_go_on_behind_the_frame() {
        assert_eq!(with_more(|_| {}), Ok(before()));
        let refused = |index: usize, value: u32| with_more(|words| words[index] = value) == Err(Errno::EINVAL);
        let start = (AT + RECORDS as u64 + 48) as u32;
        assert!(refused(1, 16) && refused(1, 48) && refused(1, 4096) && refused(1, u32::MAX), "its own size");
        assert!(refused(2, start + 16) && refused(2, start + 8) && refused(3, 1), "elsewhere");
        assert!(refused(4, 528) && refused(4, 536) && refused(4, 0) && refused(4, 256 << 10), "their size");
        assert!(refused(8, ESR_MAGIC) && refused(9, 16), "no end before them");
        assert_eq!(with_more(|words| words[4] = (256 << 10) - 48 - RECORDS as u32), Ok(before()), "as long as may be");
    }

    #[test]
    fn frames_are_aligned_and_stay_above_zero() {
        for sp in 0x8000_0000..0x8000_0020 {
            let (frame, record) = place(sp).unwrap();
            assert!(frame % 16 == 0 && record % 16 == 0);
            assert!(record + 16 <= sp && frame + size_of::<SigFrame>() as u64 <= record);
            assert!(sp - frame < 4688 + 16 + 32);
        }
        assert_eq!(place(8), None);
        assert_eq!(place(4000), None);
    }

    #[test]
    fn the_alternative_stack_is_reported_as_it_is_now() {
        assert_eq!(reported(&STACK, 0x10_0000).flags, 0, "its lowest byte is not on it: it is empty there");
        assert_eq!(reported(&STACK, 0x10_0001).flags, SS_ONSTACK);
        assert_eq!(reported(&STACK, 0x10_4000).flags, SS_ONSTACK);
        assert_eq!(reported(&STACK, 0x10_4001).flags, 0);
        assert_eq!(reported(&SigStack::NONE, 0).flags, SS_DISABLE);
    }

    proptest! {
        #[test]
        fn no_frame_gives_more_rights(changes in prop::collection::vec((0..1400_usize, any::<u8>()), 0..8)) {
            let mut frame = bytes(FaultRecord::default());
            for (at, value) in changes {
                frame[at] = value;
            }
            prop_assert_eq!(all(&frame).registers.pstate & 0x3df, 0);
        }
    }
}

//! A kernel that is loaded over a wire: the form in which it arrives, and the guest's side of that, without the memory.
//!
//! Kernel, initrd and boot arguments are each a zlib stream (RFC 1950), so that a line of 115,200 bits per second is
//! not the wait that it could be; the three follow one another, cut into requests wherever the runner likes. A request
//! repeats nothing and skips nothing ([`Responder`](crate::Responder)), so the streams need no places. The checksum is
//! of what comes out, as it lies in memory in the end: no fault on the way, of either side, passes for the image.

use core::fmt;

use base64ct::{Base64, Encoding as _};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_COMPUTE_ADLER32, TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_PARSE_ZLIB_HEADER,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::frame::checksum_of;

/// Kernel, initrd, boot arguments.
pub const PARTS: usize = 3;

/// No request has more bytes of the streams: in base64 they leave room for the rest of its line.
pub const DATA_BYTES: usize = 3008;

/// All of a zlib stream, which fills its part from the start: no window wraps.
const FLAGS: u32 = TINFL_FLAG_PARSE_ZLIB_HEADER
    | TINFL_FLAG_COMPUTE_ADLER32
    | TINFL_FLAG_HAS_MORE_INPUT
    | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;

/// The parts of a load, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// The kernel: an arm64 Image.
    pub kernel: u32,
    /// Memory that it needs, its zeroed data included, as its header has it.
    pub memory: u32,
    /// The initrd; 0: there is none.
    pub initrd: u32,
    /// The boot arguments, without an end.
    pub bootargs: u32,
    /// The [`checksum_of`] the parts.
    pub checksum: u32,
}

/// Why the loader does not start a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is not so much free memory in one piece.
    Memory,
    /// The kernel is no arm64 Image that runs at a multiple of 2 MiB, or needs another amount of memory than was said.
    Image,
    /// A part is larger or smaller than was said.
    Size,
    /// The streams cannot be read.
    Stream,
    /// The parts are not those that were sent.
    Checksum,
    /// The device tree cannot take the boot arguments and the initrd.
    Tree,
    /// No load has begun, or it was refused.
    Order,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Memory, Self::Image, Self::Size, Self::Stream, Self::Checksum, Self::Tree, Self::Order];

    /// Its word in a frame.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Image => "image",
            Self::Size => "size",
            Self::Stream => "stream",
            Self::Checksum => "checksum",
            Self::Tree => "tree",
            Self::Order => "order",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.name() == name)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "the board has not so much free memory in one piece",
            Self::Image => "the kernel is no arm64 Image that runs at any multiple of 2 MiB",
            Self::Size => "a part has another size than was announced",
            Self::Stream => "what arrived cannot be decompressed",
            Self::Checksum => "what arrived has another checksum",
            Self::Tree => "the board's device tree cannot take the boot arguments and the initrd",
            Self::Order => "no load is under way",
        })
    }
}

impl core::error::Error for Refusal {}

/// The header of an arm64 Image, as far as a loader needs it (Linux, Documentation/arch/arm64/booting.rst).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// Memory that the kernel needs from its first byte on, its zeroed data included.
    pub memory: u64,
}

impl ImageHeader {
    /// Reads the header of an Image that may lie at any multiple of 2 MiB, and needs no less memory than it has bytes.
    #[must_use]
    pub fn read(image: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*image.get(at..)?.first_chunk()?));
        let is_image = image.get(56..60)? == b"ARM\x64";
        let (text_offset, memory, flags) = (word(8)?, word(16)?, word(24)?);
        // Little endian, and anywhere in memory.
        let is_anywhere = flags & 0b1001 == 0b1000;
        (is_image && text_offset == 0 && is_anywhere && memory >= image.len() as u64).then_some(Self { memory })
    }
}

/// A load that arrives. The caller has the memory for its parts.
#[allow(missing_debug_implementations, reason = "the state of a decompressor")]
pub struct Incoming {
    load: Load,
    /// The part that arrives, and how much of it there is.
    part: usize,
    filled: usize,
    inflate: DecompressorOxide,
}

impl Incoming {
    /// A load of which nothing has arrived.
    #[must_use]
    pub fn new(load: Load) -> Self {
        Self { load, part: 0, filled: 0, inflate: DecompressorOxide::new() }
    }

    /// Begins another load.
    pub fn begin(&mut self, load: Load) {
        (self.load, self.part, self.filled) = (load, 0, 0);
        self.inflate.init();
    }

    /// Takes the data of a request into `parts`, each of the size that the load gives.
    ///
    /// # Errors
    /// The data is none, or does not fit. Then the load is over.
    pub fn take(&mut self, text: &str, parts: &mut [&mut [u8]; PARTS]) -> Result<(), Refusal> {
        let mut bytes = [0; DATA_BYTES];
        let mut data = Base64::decode(text, &mut bytes).map_err(|_| Refusal::Stream)?;
        while !data.is_empty() {
            let part = parts.get_mut(self.part).ok_or(Refusal::Size)?;
            let (status, used, written) = decompress(&mut self.inflate, data, part, self.filled, FLAGS);
            self.filled += written;
            data = data.get(used..).ok_or(Refusal::Stream)?;
            match status {
                TINFLStatus::NeedsMoreInput if data.is_empty() => {}
                // The part is full, and its stream may have no more than its end to come.
                TINFLStatus::HasMoreOutput if used != 0 => {}
                TINFLStatus::Done if self.filled == part.len() => {
                    (self.part, self.filled) = (self.part + 1, 0);
                    self.inflate.init();
                }
                TINFLStatus::Done | TINFLStatus::HasMoreOutput => return Err(Refusal::Size),
                _ => return Err(Refusal::Stream),
            }
        }
        Ok(())
    }

    /// Checks that all has arrived, that it is what was sent, and that the kernel is one that can be entered.
    ///
    /// # Errors
    /// It must not be entered.
    pub fn check(&self, parts: &[&[u8]; PARTS]) -> Result<(), Refusal> {
        if self.part != PARTS {
            return Err(Refusal::Size);
        }
        if checksum_of(parts) != self.load.checksum {
            return Err(Refusal::Checksum);
        }
        let header = ImageHeader::read(parts[0]).ok_or(Refusal::Image)?;
        if header.memory != u64::from(self.load.memory) { Err(Refusal::Image) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;

//! The kernel's own records of frames, and a CPU's magazine of free ones.

#[allow(dead_code, unreachable_pub, reason = "the array of records is the metal's: here each record stands by itself")]
#[path = "../../../src/mm/frame/record.rs"]
mod record;

#[allow(dead_code, reason = "frames come and go one by one here")]
#[path = "../../../src/mm/frame/magazine.rs"]
mod magazine;

use magazine::Magazine;
pub use record::{Frame, FreeError};

/// A CPU's magazine.
pub struct CpuMagazine(Magazine);

impl Default for CpuMagazine {
    fn default() -> Self {
        Self(Magazine {
            count: Default::default(),
            frames: std::array::from_fn(|_| Default::default()),
            #[cfg(debug_assertions)]
            busy: Default::default(),
        })
    }
}

impl CpuMagazine {
    /// Takes a frame, as `FrameAllocator::alloc` does.
    pub fn take(&self) -> Option<usize> {
        self.0.alone(Magazine::pop)
    }

    /// Gives one back, as `FrameAllocator::free` does; whether there was room.
    pub fn give(&self, frame: usize) -> bool {
        self.0.alone(|magazine| magazine.push(frame).is_ok())
    }
}

impl Frame {
    /// A free frame is handed out.
    pub fn hand_out(&self) {
        self.claim();
    }

    /// `FrameAllocator::free`, as far as the record goes.
    ///
    /// # Errors
    /// [`FreeError`].
    pub fn free(&self) -> Result<(), FreeError> {
        self.release()
    }

    /// `FrameAllocator::let_go_few`, likewise.
    ///
    /// # Errors
    /// [`FreeError`].
    pub fn drop_hold(&self) -> Result<bool, FreeError> {
        self.let_go_or_release()
    }
}

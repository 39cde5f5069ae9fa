//! The kernel's own records of frames.

#[allow(dead_code, unreachable_pub, reason = "the array of records is the metal's: here each record stands by itself")]
#[path = "../../../src/mm/frame/record.rs"]
mod record;

pub use record::{Frame, FreeError};

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

//! Reading a file of the firmware's.
//!
//! UEFI specification 2.10: 13.5 (`EFI_FILE_PROTOCOL.Read`).

use uefi_raw::Status;

/// Bytes of one read: firmware has limits of its own for longer ones.
const PIECE: usize = 1 << 20;

/// Fills `bytes` from a file, in pieces; `read` reads from where the last one ended, and tells how much that was.
///
/// # Errors
/// Those of `read`; `END_OF_FILE` where the file ends early.
pub fn read_whole(
    mut bytes: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Status>,
) -> Result<(), Status> {
    while !bytes.is_empty() {
        let piece = bytes.len().min(PIECE);
        let count = read(&mut bytes[..piece])?;
        if count == 0 {
            return Err(Status::END_OF_FILE);
        }
        bytes = bytes.get_mut(count..).ok_or(Status::DEVICE_ERROR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file of that many bytes, at most `most` at a time, into a buffer of `room`.
    fn read(file: usize, most: usize, room: usize) -> (Result<(), Status>, Vec<u8>) {
        let contents: Vec<u8> = (0..file).map(|index| (index % 251) as u8).collect();
        let (mut buffer, mut at) = (vec![0; room], 0);
        let read = read_whole(&mut buffer, |bytes| {
            assert!(bytes.len() <= PIECE);
            let count = bytes.len().min(most).min(file - at);
            bytes[..count].copy_from_slice(&contents[at..at + count]);
            at += count;
            Ok(count)
        });
        (read, if read.is_ok() { buffer } else { contents })
    }

    #[test]
    fn a_file_is_read_whole_in_short_pieces() {
        for most in [PIECE, PIECE - 1, 4096] {
            let size = 2 * PIECE + 77;
            let (read, bytes) = read(size, most, size);
            assert_eq!(read, Ok(()));
            assert!(bytes.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index % 251));
        }
        assert_eq!(read(0, 1, 0).0, Ok(()));
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        assert_eq!(read(PIECE + 5, PIECE, PIECE + 6).0, Err(Status::END_OF_FILE));
        assert_eq!(read_whole(&mut [0; 4], |_| Err(Status::DEVICE_ERROR)), Err(Status::DEVICE_ERROR));
        assert_eq!(read_whole(&mut [0; 4], |_| Ok(5)), Err(Status::DEVICE_ERROR));
    }
}

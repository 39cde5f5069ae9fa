extern crate std;
use std::string::String;
use std::vec;
use std::vec::Vec;

use base64ct::{Base64, Encoding as _};
use miniz_oxide::deflate::compress_to_vec_zlib;
use proptest::prelude::{any, prop_assert, proptest};

use super::{DATA_BYTES, ImageHeader, Incoming, Load, PARTS, Refusal};
use crate::frame::checksum_of;
use crate::request::{Order, REQUEST_BYTES, Request};
use crate::{Nonce, checksum};

/// An Image of so many bytes that needs so much memory.
fn image(bytes: usize, memory: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
    for (at, word) in [(8, 0), (16, memory), (24, 0b1010)] {
        image[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

fn load_of(parts: &[Vec<u8>; PARTS], memory: u32) -> Load {
    let [kernel, initrd, bootargs] = [0, 1, 2].map(|at| parts[at].len() as u32);
    let checksum = checksum_of(&[&parts[0], &parts[1], &parts[2]]);
    Load { kernel, memory, initrd, bootargs, checksum }
}

fn streams(parts: &[Vec<u8>; PARTS]) -> Vec<u8> {
    parts.iter().flat_map(|part| compress_to_vec_zlib(part, 6)).collect()
}

/// The streams arrive in pieces, in memory of these sizes.
fn arrive(load: Load, streams: &[u8], piece: usize, sizes: [usize; PARTS]) -> Result<[Vec<u8>; PARTS], Refusal> {
    let mut incoming = Incoming::new(load);
    let mut memory = sizes.map(|size| vec![0xa5; size]);
    for piece in streams.chunks(piece) {
        let [a, b, c] = &mut memory;
        incoming.take(&Base64::encode_string(piece), &mut [a, b, c])?;
    }
    incoming.check(&[&memory[0], &memory[1], &memory[2]])?;
    Ok(memory)
}

fn sizes(load: Load) -> [usize; PARTS] {
    [load.kernel, load.initrd, load.bootargs].map(|size| size as usize)
}

fn small() -> ([Vec<u8>; PARTS], Load) {
    let parts = [image(3000, 5000), b"an initrd, an initrd".to_vec(), b"maxcpus=1 script".to_vec()];
    let load = load_of(&parts, 5000);
    (parts, load)
}

proptest! {
    #[test]
    fn parts_arrive_as_they_were_sent(
        bytes in 64usize..9000, initrd: Vec<u8>, bootargs in "[ -~]{0,80}", piece in 1usize..=DATA_BYTES,
    ) {
        let parts = [image(bytes, 9000), initrd, bootargs.into_bytes()];
        let load = load_of(&parts, 9000);
        prop_assert!(arrive(load, &streams(&parts), piece, sizes(load)) == Ok(parts));
    }

    #[test]
    fn a_changed_byte_of_the_streams_is_found(at: proptest::sample::Index, bit in 0u32..8, piece in 1usize..=DATA_BYTES) {
        let (parts, load) = small();
        let mut streams = streams(&parts);
        let at = at.index(streams.len());
        streams[at] ^= 1 << bit;
        // zlib's header has bits without an effect on what comes out.
        let arrived = arrive(load, &streams, piece, sizes(load));
        prop_assert!(arrived.is_err() || arrived == Ok(parts));
    }

    #[test]
    fn any_data_is_taken_without_a_panic(texts in proptest::collection::vec("[A-Za-z0-9+/=]{0,40}|.{0,9}", 0..9)) {
        let (_, load) = small();
        let mut incoming = Incoming::new(load);
        let mut memory = sizes(load).map(|size| vec![0; size]);
        for text in texts {
            let [a, b, c] = &mut memory;
            let _ = incoming.take(&text, &mut [a, b, c]);
        }
        prop_assert!(incoming.check(&[&memory[0], &memory[1], &memory[2]]).is_err());
    }

    #[test]
    fn any_header_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = ImageHeader::read(&bytes);
    }
}

#[test]
fn a_part_that_lies_about_its_size_is_refused() {
    let (parts, load) = small();
    let streams = streams(&parts);
    for part in 0..PARTS {
        for change in [-1isize, 1] {
            let mut sizes = sizes(load);
            sizes[part] = sizes[part].checked_add_signed(change).unwrap();
            assert_eq!(arrive(load, &streams, 100, sizes), Err(Refusal::Size), "part {part}, {change}");
        }
    }
    // A bomb: a megabyte of nothing in a thousand bytes.
    let bomb = compress_to_vec_zlib(&vec![0; 1 << 20], 9);
    assert_eq!(arrive(load, &bomb, DATA_BYTES, sizes(load)), Err(Refusal::Size));
}

#[test]
fn what_is_not_whole_is_not_entered() {
    let (parts, load) = small();
    let streams = streams(&parts);
    for end in [0, 1, streams.len() - 1] {
        assert_eq!(arrive(load, &streams[..end], DATA_BYTES, sizes(load)), Err(Refusal::Size), "{end}");
    }
    let more = [&streams[..], b"x"].concat();
    assert_eq!(arrive(load, &more, DATA_BYTES, sizes(load)), Err(Refusal::Size), "one byte too many");
    let other = Load { checksum: load.checksum ^ 1, ..load };
    assert_eq!(arrive(other, &streams, DATA_BYTES, sizes(load)), Err(Refusal::Checksum));
}

/// The memory that was made room for is the memory that the kernel takes.
#[test]
fn a_kernel_that_lies_about_its_memory_is_refused() {
    let (parts, load) = small();
    let streams = streams(&parts);
    for memory in [4999, 5001] {
        let load = Load { memory, ..load };
        assert_eq!(arrive(load, &streams, DATA_BYTES, sizes(load)), Err(Refusal::Image), "{memory}");
    }
    let header = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = image(64, 64);
        change(&mut image);
        ImageHeader::read(&image)
    };
    assert_eq!(header(&|_| {}), Some(ImageHeader { memory: 64 }));
    assert_eq!(header(&|image| image[56] = b'a'), None, "another magic number");
    assert_eq!(header(&|image| image[9] = 8), None, "an offset from a multiple of 2 MiB");
    assert_eq!(header(&|image| image[16] = 63), None, "less memory than the file has");
    assert_eq!(header(&|image| image[24] = 0b0010), None, "near the start of memory alone");
    assert_eq!(header(&|image| image[24] = 0b1011), None, "big endian");
    assert_eq!(header(&|image| image.truncate(59)), None, "no whole header");
}

#[test]
fn a_load_that_was_broken_off_leaves_nothing_to_the_next() {
    let (parts, load) = small();
    let streams = streams(&parts);
    let mut incoming = Incoming::new(load);
    let mut memory = sizes(load).map(|size| vec![0; size]);
    for broken_off in [1, streams.len() / 2, streams.len()] {
        incoming.begin(load);
        for piece in streams[..broken_off].chunks(DATA_BYTES) {
            let [a, b, c] = &mut memory;
            incoming.take(&Base64::encode_string(piece), &mut [a, b, c]).unwrap();
        }
    }
    assert_eq!(incoming.check(&[&memory[0], &memory[1], &memory[2]]), Ok(()));
}

/// The largest request has its room, and a checksum over parts is that over all.
#[test]
fn the_largest_data_fits_a_request() {
    let text = Base64::encode_string(&[0xff; DATA_BYTES]);
    let mut line = String::new();
    let request = Request { sequence: u32::MAX, order: Order::Data { text: &text } };
    request.encode(Nonce(u32::MAX), &mut line).unwrap();
    assert!(line.len() <= REQUEST_BYTES, "{}", line.len());
    assert_eq!(checksum_of(&[b"1234", b"", b"56789"]), checksum(b"123456789"));
    for why in Refusal::ALL {
        assert_eq!(Refusal::named(why.name()), Some(why));
    }
}

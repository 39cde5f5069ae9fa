//! `./x image` and `./x flash`: a disk image for a board, and the image onto a card.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use granule_disk::board::{Board, Parts};
use granule_disk::device::{Fixed, System, numbers, numbers_of};
use granule_disk::flash::{Step, flash, open_device, open_image};
use granule_disk::layout::{self, Existing};
use granule_image::compile::Built;
use indicatif::{ProgressBar, ProgressStyle};

/// The contents of an image, and its file.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageOptions {
    /// The board that boots from the image; generic: any by its U-Boot, uefi: any by its UEFI
    #[arg(long, value_parser = PossibleValuesParser::new(Board::ALL.map(Board::name)).try_map(|name| Board::named(&name)))]
    board: Board,
    /// The image to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The board's device tree, in place of the one that its firmware or U-Boot has
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
    /// The folder that has the files of the board's firmware
    #[arg(long, value_name = "DIR")]
    firmware: Option<PathBuf>,
    /// Boot arguments
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true)]
    append: String,
    /// The image of the target's tests in place of the kernel: for ./x test --serial
    #[arg(long)]
    tests: bool,
    /// The image of the benches in place of the kernel: for ./x bench --serial
    #[arg(long, conflicts_with = "tests")]
    benches: bool,
    /// The loader in place of the kernel, without programs: for ./x boot --serial
    #[arg(long, conflicts_with_all = ["tests", "benches"])]
    loader: bool,
    /// Replace an image of that name
    #[arg(long)]
    force: bool,
}

/// Which image goes to which device.
#[derive(Debug, clap::Args)]
pub(crate) struct FlashOptions {
    /// An image of ./x image, or another one that begins with an MBR
    image: PathBuf,
    /// The block device of a whole disk, such as /dev/sdb
    device: PathBuf,
    /// Write to a disk that cannot be taken out too
    #[arg(long)]
    force_fixed: bool,
}

/// Makes the image of what `build` builds.
///
/// # Errors
/// When a part is missing, or the image cannot be written.
pub(crate) fn image(options: &ImageOptions, build: impl FnOnce() -> Result<Built>) -> Result<()> {
    let existing = if options.force { Existing::Replaced } else { Existing::Kept };
    layout::check_output(&options.output, existing)?;
    let built = build()?;
    let (kernel, initrd) = match options {
        ImageOptions { tests: true, .. } => (&built.tests.image, Some(built.initrd.as_path())),
        ImageOptions { benches: true, .. } => (&built.benches.image, Some(built.initrd.as_path())),
        ImageOptions { loader: true, .. } => (&built.loader.image, None),
        _ => (&built.kernel.image, Some(built.initrd.as_path())),
    };
    let files = options.board.files(&Parts {
        kernel,
        initrd,
        tree: options.dtb.as_deref(),
        firmware: options.firmware.as_deref(),
        append: &options.append,
    })?;
    layout::write(&options.output, &layout::image(options.board.table(), &files)?, existing)?;
    println!("{}", options.output.display());
    Ok(())
}

/// Writes an image to a device, and compares.
///
/// # Errors
/// When the device is refused, or does not return what was written.
pub(crate) fn write(options: &FlashOptions) -> Result<()> {
    let (mut image, size) = open_image(&options.image)?;
    let fixed = if options.force_fixed { Fixed::Allowed } else { Fixed::Refused };
    let checked = numbers(&options.device)?;
    let disk = System::at(Path::new("/")).disk(&checked, fixed)?;
    let (image_name, device) = (options.image.display(), options.device.display());
    ensure!(size <= disk.bytes, "{image_name} has {size} bytes, {device} only {}", disk.bytes);
    let mut opened = open_device(&options.device)?;
    // A name may lead elsewhere by now: cards are exchanged.
    let is_checked = numbers_of(&opened.metadata()?, &options.device)? == checked;
    ensure!(is_checked, "{device} became another device while it was looked at; nothing was written");
    eprintln!("x: {image_name} to {device}: {}, {} MiB {}", disk.name, disk.bytes >> 20, disk.model);
    let bar = ProgressBar::new(size);
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")?);
    flash(&mut image, size, &mut opened, &mut |step, done| {
        bar.set_message(if step == Step::Write { "write  " } else { "compare" });
        bar.set_position(done);
    })?;
    bar.finish();
    eprintln!("x: written and compared: the card can be taken out");
    Ok(())
}

//! QEMU's trace of its SMMU, line by line: its commands, and its answers to devices.
//!
//! A translation is three lines in a row, since one thread at a time is in the SMMU: the look into its TLB,
//! which has the ASID, what was put in there, and the result, which has the stream.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// QEMU's arguments for a trace in the file `log`.
pub fn arguments(log: &Path) -> Vec<OsString> {
    let events = ["smmuv3_*", "smmu_iotlb_lookup*"].map(|events| ["-trace".into(), events.into()]);
    events.into_iter().flatten().chain(["-D".into(), log.into()]).collect()
}

/// The effect of a command, as far as the checker cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// Forgets the configuration of these streams.
    Streams(u32, u32),
    /// Forgets these addresses; without an ASID in all of them.
    Range { asid: Option<u32>, start: u64, end: u64 },
    /// Forgets what is under an ASID.
    Asid(u32),
    /// Forgets everything.
    Everything,
}

/// The contents of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// A command was taken from the queue; its effects follow. True for CMD_SYNC.
    Command(bool),
    /// The effect of the last command, or a part of it.
    Effect(Effect),
    /// A command that the SMMU finds illegal.
    Illegal,
    /// It looks for an address, on behalf of the stream that comes next.
    Looked { asid: u32 },
    /// An access passes, by an entry that may be written or not.
    Reached { stream: u32, page: u64, physical: u64, writable: bool },
    /// An access does not pass, and there is an event.
    Refused { stream: u32, event: String },
    /// An access does not pass, silently.
    Aborted { stream: u32 },
    /// An access passes untranslated.
    Bypassed { stream: u32 },
}

const PAGE: u64 = 4096;

/// Reads a line; `None` for one without anything that matters.
pub(super) fn read(line: &str) -> Result<Option<Seen>> {
    seen(line).with_context(|| format!("a line of the trace cannot be read: {line}"))
}

fn seen(line: &str) -> Result<Option<Seen>> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    Ok(Some(match name {
        "smmuv3_cmdq_opcode" => Seen::Command(rest.ends_with("CMD_SYNC")),
        "smmuv3_cmdq_cfgi_ste" => one_stream(number(rest, "streamid")?)?,
        "smmuv3_cmdq_cfgi_cd" => one_stream(number(rest, "sid")?)?,
        "smmuv3_cmdq_cfgi_ste_range" => {
            let [start, end] = [number(rest, "start")?, number(rest, "end")?];
            Seen::Effect(Effect::Streams(start.try_into()?, end.try_into()?))
        }
        "smmuv3_cmdq_tlbi_nh_asid" => Seen::Effect(Effect::Asid(number(rest, "asid")?.try_into()?)),
        "smmuv3_cmdq_tlbi_nh" | "smmuv3_cmdq_tlbi_nsnh" => Seen::Effect(Effect::Everything),
        "smmuv3_range_inval" => {
            ensure!(number(rest, "tg")? <= 1, "pages of another size");
            let start = number(rest, "addr")?;
            let end = start + number(rest, "num_pages")? * PAGE;
            let asid = if rest.contains("asid=-1") { None } else { Some(number(rest, "asid")?.try_into()?) };
            Seen::Effect(Effect::Range { asid, start, end })
        }
        "smmuv3_cmdq_consume_error" | "smmuv3_unhandled_cmd" => Seen::Illegal,
        "smmu_iotlb_lookup_hit" | "smmu_iotlb_lookup_miss" => Seen::Looked { asid: number(rest, "asid")?.try_into()? },
        "smmuv3_translate_success" => Seen::Reached {
            stream: number(rest, "sid")?.try_into()?,
            page: number(rest, "iova")? & !(PAGE - 1),
            physical: number(rest, "translated")? & !(PAGE - 1),
            writable: number(rest, "perm")? & 2 != 0,
        },
        "smmuv3_record_event" => Seen::Refused {
            stream: number(rest, "sid")?.try_into()?,
            event: rest.split(' ').next().unwrap_or_default().to_owned(),
        },
        "smmuv3_translate_abort" => Seen::Aborted { stream: number(rest, "sid")?.try_into()? },
        "smmuv3_translate_bypass" | "smmuv3_translate_disable" => {
            Seen::Bypassed { stream: number(rest, "sid")?.try_into()? }
        }
        _ => return Ok(None),
    }))
}

fn one_stream(stream: u64) -> Result<Seen> {
    let stream = stream.try_into()?;
    Ok(Seen::Effect(Effect::Streams(stream, stream)))
}

/// The number after `key=`, decimal or with 0x; QEMU puts a blank in front of some.
fn number(rest: &str, key: &str) -> Result<u64> {
    let at = |(at, _): &(usize, _)| *at == 0 || rest.as_bytes()[at - 1] == b' ';
    let behind = rest.match_indices(&format!("{key}=")).find(at).with_context(|| format!("no {key}"))?;
    let text = rest[behind.0 + key.len() + 1..].trim_start();
    let text = text.split([' ', ',']).next().unwrap_or_default();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.with_context(|| format!("{key} is no number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::{Effect, Seen, read};

    #[test]
    fn lines_of_a_trace_are_read() {
        for (line, seen) in [
            ("smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC", Seen::Command(true)),
            ("smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_NH_VA", Seen::Command(false)),
            ("smmuv3_cmdq_cfgi_ste streamid= 0x8", Seen::Effect(Effect::Streams(8, 8))),
            ("smmuv3_cmdq_cfgi_ste_range start=0x0 - end=0xffffffff", Seen::Effect(Effect::Streams(0, u32::MAX))),
            (
                "smmuv3_range_inval vmid=0 asid=6 addr=0x100000000 tg=1 num_pages=0x4 ttl=0 leaf=1 stage=1",
                Seen::Effect(Effect::Range { asid: Some(6), start: 0x1_0000_0000, end: 0x1_0000_4000 }),
            ),
            (
                "smmuv3_range_inval vmid=0 asid=-1 addr=0x1000 tg=0 num_pages=0x1 ttl=0 leaf=1 stage=1",
                Seen::Effect(Effect::Range { asid: None, start: 0x1000, end: 0x2000 }),
            ),
            (
                "smmuv3_translate_success smmuv3-iommu-memory-region-8-1 sid=0x8 iova=0x1001ff008 \
                 translated=0x40c1e008 perm=0x3 stage=1",
                Seen::Reached { stream: 8, page: 0x1_001f_f000, physical: 0x40c1_e000, writable: true },
            ),
            (
                "smmuv3_record_event SMMU_EVT_F_PERMISSION sid=0x8",
                Seen::Refused { stream: 8, event: "SMMU_EVT_F_PERMISSION".into() },
            ),
        ] {
            assert_eq!(read(line).unwrap(), Some(seen), "{line}");
        }
        assert_eq!(read("smmuv3_get_ste STE addr: 0x4").unwrap(), None);
    }

    #[test]
    fn lines_that_are_cut_off_are_refused() {
        for line in
            ["smmuv3_cmdq_cfgi_cd", "smmuv3_translate_success x sid=0x8 iova=", "smmuv3_cmdq_tlbi_nh_asid asid=x"]
        {
            assert!(read(line).is_err(), "{line}");
        }
    }
}

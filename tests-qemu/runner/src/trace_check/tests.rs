//! An honest trace, and all that may be done to it.

use granule_protocol::{Access, Expectation};

use super::{Agreed, check, expectations, fewest};

/// As QEMU writes it: stream 0x10 is bound, reads a page, which changes; three pages change; it writes; it is refused
/// another page, and unbound.
const TRACE: &str = "\
smmuv3_cmdq_opcode <--- SMMU_CMD_CFGI_CD
smmuv3_cmdq_cfgi_cd sid=0x10
smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC
smmuv3_config_cache_miss Config cache MISS for sid=0x10 (hits=4, misses=2, hit rate=66)
smmu_iotlb_lookup_miss IOTLB cache MISS asid=7 vmid=0 addr=0x400000 hit=0 miss=1 hit rate=0
smmuv3_translate_success smmuv3-iommu-memory-region-16-2 sid=0x10 iova=0x400000 translated=0x4c1e000 perm=0x1 stage=1
smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_NH_VA
smmuv3_range_inval vmid=0 asid=7 addr=0x400000 tg=0 num_pages=0x1 ttl=0 leaf=1 stage=1
smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC
smmu_iotlb_lookup_miss IOTLB cache MISS asid=7 vmid=0 addr=0x400000 hit=0 miss=1 hit rate=0
smmuv3_translate_success smmuv3-iommu-memory-region-16-2 sid=0x10 iova=0x400800 translated=0x4c1e800 perm=0x3 stage=1
smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_NH_VA
smmuv3_range_inval vmid=0 asid=7 addr=0x400000 tg=1 num_pages=0x2 ttl=3 leaf=1 stage=1
smmuv3_range_inval vmid=0 asid=7 addr=0x402000 tg=1 num_pages=0x1 ttl=3 leaf=1 stage=1
smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC
smmuv3_record_event SMMU_EVT_F_TRANSLATION sid=0x10
smmuv3_cmdq_opcode <--- SMMU_CMD_CFGI_CD
smmuv3_cmdq_cfgi_cd sid=0x10
smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC
smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_NH_ASID
smmuv3_cmdq_tlbi_nh_asid asid=7
smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC
";

const STREAM: u32 = 0x10;
const START: u64 = 0x40_0000;
const PHYSICAL: u64 = 0x4c1_e000;

fn story() -> Vec<Expectation> {
    let reached = |access| Expectation::Reached { stream: STREAM, access, page: START, physical: PHYSICAL };
    vec![
        Expectation::Bound { stream: STREAM },
        reached(Access::Read),
        Expectation::Changed { start: START, end: START + 0x1000 },
        reached(Access::Write),
        Expectation::Changed { start: START, end: START + 0x3000 },
        Expectation::Refused { stream: STREAM, access: Access::Read, page: START },
        Expectation::Unbound { stream: STREAM },
    ]
}

fn lines() -> Vec<String> {
    TRACE.lines().map(str::to_owned).collect()
}

#[track_caller]
fn refused(expectations: &[Expectation], lines: &[String], why: &str) {
    match check(expectations, &lines.join("\n")) {
        Ok(agreed) => panic!("{why}: {agreed:?}"),
        Err(error) => assert!(format!("{error:#}").contains(why), "wanted: {why}; found: {error:#}"),
    }
}

/// The honest trace with one line replaced.
fn with(from: &str, to: &str) -> Vec<String> {
    let at = TRACE.find(from).expect("a part of the trace");
    format!("{}{to}{}", &TRACE[..at], &TRACE[at + from.len()..]).lines().map(str::to_owned).collect()
}

#[test]
fn an_honest_trace_agrees() {
    let agreed = check(&story(), TRACE).unwrap();
    assert_eq!(agreed, Agreed { changes: 2, commands: 2, reached: 2, refused: 1 });
    let printed: String = story().iter().map(|expectation| format!("something else\n{expectation}\n")).collect();
    assert_eq!(expectations(&printed).unwrap(), story());
    assert!(expectations("expectation: changed 0x1").is_err());
}

#[test]
fn a_device_may_take_several_steps_for_an_access() {
    let mut twice = lines();
    let again = twice[4..6].to_vec();
    twice.splice(6..6, again);
    assert!(check(&story(), &twice.join("\n")).is_ok());
}

#[test]
fn what_differs_is_named() {
    let story = story();
    for (from, to, why) in [
        ("asid=7 addr=0x400000 tg=0", "asid=6 addr=0x400000 tg=0", "not expected; next: expectation: changed"),
        ("asid=7 addr=0x402000", "asid=6 addr=0x402000", "not exactly"),
        ("addr=0x402000", "addr=0x403000", "not exactly"),
        ("num_pages=0x1 ttl=3", "num_pages=0x2 ttl=3", "not exactly"),
        ("perm=0x3", "perm=0x1", "not expected; next: expectation: reached 0x10 write"),
        ("translated=0x4c1e800", "translated=0x4c1f800", "not expected; next: expectation: reached"),
        ("F_TRANSLATION", "C_BAD_CD", "not set up as it should be"),
        ("smmuv3_cmdq_cfgi_cd sid=0x10", "smmuv3_cmdq_cfgi_cd sid=0x18", "next: expectation: bound"),
    ] {
        refused(&story, &with(from, to), why);
    }
    let bypass = "smmuv3_translate_bypass x sid=0x10 STE bypass iova:0x400000 is_write=0\nsmmuv3_config_cache_miss";
    refused(&story, &with("smmuv3_config_cache_miss", bypass), "passes untranslated");
    let command = "smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_NH_VA";
    refused(&story, &with(command, &format!("{command}\n{command}")), "2 commands for what takes 1");
    let without_sync: Vec<String> = lines().into_iter().filter(|line| !line.ends_with("CMD_SYNC")).collect();
    refused(&story, &without_sync, "next: expectation: bound");
    refused(&story[..6], &lines(), "is configured anew");
    assert!(check(&[], TRACE).is_err());
}

#[test]
fn a_number_of_pages_takes_one_command_or_two() {
    let ones = [1, 2, 31, 32, 33, 34, 62, 63, 64, 66, 512, 4096, 1 << 20];
    assert_eq!(ones.map(fewest), [1, 1, 1, 1, 2, 1, 1, 2, 1, 2, 1, 1, 1]);
}

#[test]
fn what_is_not_held_does_not_count() {
    let (mut expectations, mut twice) = (story(), lines());
    expectations.insert(3, expectations[2]);
    let again = twice[6..9].to_vec();
    twice.splice(9..9, again);
    assert_eq!(check(&expectations, &twice.join("\n")).unwrap(), check(&story(), TRACE).unwrap());
}

#[test]
fn each_line_is_missed_but_those_that_say_nothing_new() {
    let harmless = |line: &str| line.contains("Config cache") || line.contains("CFGI_CD") || line.contains("NH_ASID");
    for at in 0..lines().len() {
        let mut trace = lines();
        let line = trace.remove(at);
        // A CMD_SYNC between two calls for which one would do; the name of a command in front of what it did.
        let agrees = check(&story(), &trace.join("\n")).is_ok();
        assert_eq!(agrees, harmless(&line) || at == 18, "without line {at}: {line}");
    }
}

#[test]
fn no_step_can_be_left_out_or_come_at_another_time() {
    // Each call and each access.
    let steps: Vec<Vec<String>> =
        [0..3, 3..6, 6..9, 9..11, 11..15, 15..16, 16..19, 19..22].map(|lines| self::lines()[lines].to_vec()).into();
    let agrees = |steps: &[Vec<String>]| check(&story(), &steps.concat().join("\n")).is_ok();
    assert!(agrees(&steps));
    for one in 0..steps.len() {
        let mut edited = steps.clone();
        edited.remove(one);
        assert!(!agrees(&edited), "without step {one}");
        for other in (one + 1..steps.len()).filter(|&other| steps[one] != steps[other]) {
            let mut edited = steps.clone();
            edited.swap(one, other);
            assert!(!agrees(&edited), "with steps {one} and {other} exchanged");
        }
    }
    for one in 0..story().len() {
        let mut expectations = story();
        expectations.remove(one);
        assert!(check(&expectations, TRACE).is_err(), "without {}", story()[one]);
    }
}

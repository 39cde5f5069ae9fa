//! Address spaces with so few numbers that they run out all the time.

use granule_host_tests::guest::outcome;
use granule_runner::judge::Verdict;

/// Sixty spaces at EL0 under seventeen numbers, on three CPUs. They have no CNP: with it the kernel goes by way of no
/// tables from one space to the next, where QEMU empties its TLB, which hides two spaces under one number.
#[test]
fn numbers_run_out_and_no_space_sees_another() {
    let name = "user::each_space_has_its_own_page_under_any_number";
    let outcome = outcome("a72", "asids=18", name);
    assert!(matches!(outcome.verdict, Verdict::Passed(_)), "{outcome:?}");
    let generations = outcome.output.split("generations: ").nth(1).and_then(|rest| rest.lines().next());
    let generations: u64 = generations.and_then(|count| count.trim().parse().ok()).expect("the test prints them");
    // Sixty first runs alone take more than three times seventeen.
    assert!(generations >= 3, "only {generations} generations");
}

//! Which address is tried when, against the clock of the tests.

use super::*;

fn address(name: &str) -> Address {
    format!("relay://{name}.example:4430").parse().unwrap()
}

#[test]
fn only_the_first_round_of_several_addresses_is_in_a_hurry() {
    let mut rounds = Rounds::new();
    assert_eq!(rounds.waits(1).dial, Patience::default());
    assert_eq!(rounds.waits(2).dial, HURRIED.dial);
    rounds.end();
    assert_eq!(rounds.waits(2).dial, Patience::default());
    rounds.after_work(Some(address("a")));
    assert_eq!(rounds.waits(2).dial, HURRIED.dial);
}

#[test]
fn pauses_lie_between_rounds_and_grow_until_a_session_works() {
    let mut rounds = Rounds::new();
    for round in 0..20_u32 {
        rounds.tried.push(address("a"));
        let ceiling = (RETRY_MIN * 2_u32.pow(round.min(9))).min(RETRY_MAX);
        assert!(rounds.end() <= ceiling);
        assert!(rounds.tried.is_empty());
    }
    let pause = rounds.after_work(Some(address("a")));
    assert!(pause <= RETRY_MIN, "{pause:?}");
    assert_eq!(rounds.tried, [address("a")]);
}

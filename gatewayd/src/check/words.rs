//! How numbers and names read.

use std::time::Duration;

/// The two greatest units of a time: `2 h`, `16 min 40 s`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let words = parts
        .iter()
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .filter(|(count, _)| *count != 0)
        .map(|(count, unit)| format!("{count} {unit}"))
        .collect::<Vec<_>>();
    if words.is_empty() {
        return "0 s".to_owned();
    }
    words.join(" ")
}

/// `once`, `3 times`.
pub(super) fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

/// The Name of a TPM object as people compare it: the first 16 digits of its hash in groups of
/// four. The four digits before say which hash, and are the same in each.
pub(super) fn short_name(name: &str) -> String {
    let digits = name.get(4..20).unwrap_or(name);
    let mut short = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && index % 4 == 0 {
            short.push('-');
        }
        short.push(digit);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_in_their_two_greatest_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (7200, "2 h"),
            (1000, "16 min 40 s"),
            (86_400, "1 d"),
            (90_061, "1 d 1 h"),
            (86_401, "1 d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn a_name_is_shortened_to_what_tells_it_from_others() {
        let name = format!("000b9c4e71aa03b25d10{}", "ff".repeat(24));
        assert_eq!(short_name(&name), "9c4e-71aa-03b2-5d10");
        assert_eq!(short_name("000b"), "000b");
    }
}

//! How a mistake names what was found, and what may have been meant.

/// The text in quotation marks, on one line, cut if it is long.
pub(super) fn quoted(text: &str) -> String {
    if text.chars().nth(QUOTED_CHARACTERS_MAX).is_none() {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(QUOTED_CHARACTERS_MAX).collect();
    format!("{:?}", format!("{start}..."))
}

/// What to write instead of `found`: the most similar of `known`, or all of them if none is similar
/// and they are few. Begins with a semicolon, unless it is empty.
pub(super) fn instead<'a>(found: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    // Letters in the other case are as similar as the right ones.
    let found = found.to_lowercase();
    let mut nearest = (SIMILAR_MIN, "");
    for word in known.clone() {
        let similarity = strsim::jaro_winkler(&found, &word.to_lowercase());
        if similarity > nearest.0 {
            nearest = (similarity, word);
        }
    }
    let all: Vec<_> = known.take(LISTED_MAX + 1).collect();
    match nearest.1 {
        "" if (1..=LISTED_MAX).contains(&all.len()) => format!("; there are: {}", all.join(", ")),
        "" => String::new(),
        word => format!("; nearest is {word:?}"),
    }
}

/// What fits a line of a terminal next to a file's name and the key.
const QUOTED_CHARACTERS_MAX: usize = 64;

/// More words than this are no help on one line.
const LISTED_MAX: usize = 20;

/// Jaro-Winkler: typing errors in short words stay above, other words below.
const SIMILAR_MIN: f64 = 0.8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_names_the_word_meant() {
        let types = || ["INT16", "UINT16", "INT32", "INT64", "FLOAT32"].into_iter();
        assert_eq!(instead("INT61", types()), "; nearest is \"INT16\"");
        assert_eq!(instead("float32", types()), "; nearest is \"FLOAT32\"");
        let few = || ["bulk", "normal"].into_iter();
        assert_eq!(instead("xyz", few()), "; there are: bulk, normal");
        assert_eq!(instead("xyz", [].into_iter()), "");
        assert_eq!(instead("xyz", ["a"; 21].into_iter()), "");
    }

    #[test]
    fn what_was_found_stays_on_one_short_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(
            quoted(&"a".repeat(65)),
            format!("\"{}...\"", "a".repeat(64))
        );
    }
}

//! Words as the search compares them: without case, accents and compatibility forms, so that
//! `Xe đạp` is found as `xe dap`. Texts and queries go through the same function, whichever database
//! keeps the index.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;

/// A longer word is compared by its beginning.
pub const WORD_MAX: usize = 64;

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Where it stands, in bytes.
    pub at: Range<usize>,
    /// As it is compared.
    pub folded: String,
}

/// The words of a text: letters and digits, and the accents on them.
pub fn words(text: &str) -> impl Iterator<Item = Word> + '_ {
    let mut rest = text.char_indices().peekable();
    let next = move || {
        let (start, first) = rest.find(|(_, character)| character.is_alphanumeric())?;
        let mut end = start + first.len_utf8();
        while let Some((at, character)) =
            rest.next_if(|(_, character)| character.is_alphanumeric() || is_accent(*character))
        {
            end = at + character.len_utf8();
        }
        Some(Word { at: start..end, folded: folded(&text[start..end]) })
    };
    std::iter::from_fn(next).filter(|word| !word.folded.is_empty())
}

/// The words of a text as they are compared, with spaces between.
pub fn folded_words(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for word in words(text) {
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str(&word.folded);
    }
    all
}

/// The combining marks that Latin, Greek and Cyrillic letters carry. Those of other scripts are
/// vowels, and stay.
fn is_accent(character: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&character)
}

fn folded(word: &str) -> String {
    let plain = word.nfkd().filter(|character| !is_accent(*character));
    let lower = plain.flat_map(char::to_lowercase).filter(|character| character.is_alphanumeric());
    let mut folded = String::with_capacity(word.len());
    for character in lower.take(WORD_MAX) {
        match character {
            'đ' | 'ð' => folded.push('d'),
            'ł' => folded.push('l'),
            'ø' => folded.push('o'),
            'ı' => folded.push('i'),
            'ß' => folded.push_str("ss"),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            other => folded.push(other),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accents_and_case_do_not_tell_words_apart() {
        for (text, folded) in [
            ("Xe đạp ĐỊA HÌNH", "xe dap dia hinh"),
            ("Nguyễn Thị Hường", "nguyen thi huong"),
            // The same letters, composed and decomposed.
            ("Pho\u{31b}\u{309} Ph\u{1edf}", "pho pho"),
            ("Straße, Øre & Łódź", "strasse ore lodz"),
            ("ﬁne ２０２６", "fine 2026"),
            ("SKU-42/b_7", "sku 42 b 7"),
            ("İstanbul", "istanbul"),
            ("'; DROP TABLE -- \0 \u{301}", "drop table"),
            ("", ""),
            ("?!…", ""),
        ] {
            assert_eq!(folded_words(text), folded, "{text}");
        }
    }

    #[test]
    fn a_word_knows_where_it_stands() {
        let text = "Xe đạp, cũ";
        let found: Vec<_> = words(text).map(|word| &text[word.at]).collect();
        assert_eq!(found, ["Xe", "đạp", "cũ"]);
    }

    proptest! {
        #[test]
        fn folding_twice_is_folding_once(text in any::<String>()) {
            let once = folded_words(&text);
            prop_assert_eq!(&folded_words(&once), &once);
            prop_assert!(once.chars().all(|of| of == ' ' || of.is_alphanumeric()));
            let mut last = 0;
            for word in words(&text) {
                prop_assert!(word.at.start >= last);
                prop_assert!(word.folded.chars().count() <= 2 * WORD_MAX);
                last = word.at.end;
                let _ = &text[word.at];
            }
        }
    }
}

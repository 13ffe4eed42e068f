//! What letters have in common: the same subscription, class and message, apart from the numbers,
//! ids and quoted values in it.

use crate::journal::Letter;

/// Characters of a message that are compared.
const CHARS_MAX: usize = 300;

impl Letter {
    /// Names the kind of failure; none: the letter did not fail itself.
    pub fn fingerprint(&self) -> Option<String> {
        if self.class.is_empty() {
            return None;
        }
        let message = normalised(&self.error);
        let parts = [self.subscription.as_bytes(), self.class.as_bytes(), message.as_bytes()];
        let mut name = crate::id::derived("fingerprint", &parts).simple().to_string();
        name.truncate(16);
        Some(name)
    }
}

/// A message without what differs from case to case: quoted values read `"?"`, words with a digit
/// or an `@` in them `#`.
pub fn normalised(message: &str) -> String {
    let mut normal = String::new();
    let mut word = String::new();
    let mut rest = message.chars().take(CHARS_MAX);
    while let Some(character) = rest.next() {
        let quote = matches!(character, '"' | '`') || (character == '\'' && word.is_empty());
        if quote && rest.clone().any(|other| other == character) {
            end_word(&mut word, &mut normal);
            rest.find(|other| *other == character);
            normal.push_str("\"?\"");
        } else if character.is_alphanumeric() || matches!(character, '_' | '-' | '@' | '\'') {
            word.push(character);
        } else {
            end_word(&mut word, &mut normal);
            normal.push(character);
        }
    }
    end_word(&mut word, &mut normal);
    normal
}

fn end_word(word: &mut String, normal: &mut String) {
    let differs = |character: char| character.is_ascii_digit() || character == '@';
    if word.contains(differs) {
        normal.push('#');
    } else {
        normal.push_str(word);
    }
    word.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_case_to_case_is_left_out() {
        for (message, normal) in [
            ("no order 17 of 3.50", "no order # of #.#"),
            ("user 0190f0c2-9b1c-7e0a-8f55-3d1c2b4a5e6f is gone", "user # is gone"),
            ("the field \"name\" of `x y` can't be read", "the field \"?\" of \"?\" can't be read"),
            ("mail to ann@example.com failed", "mail to #.com failed"),
            ("an open \" stays", "an open \" stays"),
            ("", ""),
        ] {
            assert_eq!(normalised(message), normal, "{message}");
        }
    }
}

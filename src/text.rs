//! Words out of text, and text out of words.
//!
//! A token is a word or a punctuation mark. Words are told apart without regard to case, and are spelled
//! the way the text spells them inside a sentence; [`Vocabulary::decode`] puts spaces and capitals back.
//!
//! ```
//! # fn main() -> everloop::Result<()> {
//! use everloop::text::Vocabulary;
//! let vocabulary = Vocabulary::of("“Well,” said Ada, “well well.”");
//! let ids = vocabulary.encode("WELL said ada. well, well")?;
//! assert_eq!(vocabulary.decode(&ids)?, "Well said Ada. Well, well");
//! assert!(vocabulary.encode("said the dragon").unwrap_err().to_string().contains("`the`, `dragon`"));
//! # Ok(()) }
//! ```

use crate::error::{Error, Result, ensure};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use unicode_segmentation::UnicodeSegmentation;

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Space,
    /// A letter or digit.
    Letter,
    /// A letter of a script that puts no spaces between words: each is a token.
    Single,
    /// An emoji.
    Picture,
    Punctuation,
}

/// Of a character, or of one with the marks that change it, by its first.
fn class(c: char) -> Class {
    match c {
        '\u{200b}' | '\u{feff}' => Class::Space,
        _ if c.is_whitespace() || c.is_control() => Class::Space,
        '\u{3005}'..='\u{3007}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' => {
            Class::Single
        }
        '\u{20000}'..='\u{3ffff}' => Class::Single,
        _ if c.is_alphanumeric() => Class::Letter,
        '\u{1f000}'.. => Class::Picture,
        _ => Class::Punctuation,
    }
}

/// Whether punctuation between `before` and `after` belongs to a word: don't, well-known, 3.14.
fn binds(before: char, c: char, after: Option<char>) -> bool {
    match c {
        '\'' | '’' | '-' | '‐' | '‑' | '\u{ad}' => after.is_some_and(|a| class(a) == Class::Letter),
        '.' | ',' => before.is_ascii_digit() && after.is_some_and(|a| a.is_ascii_digit()),
        _ => false,
    }
}

/// Bytes of the token that `text` begins with.
fn token_len(text: &str) -> usize {
    // with accents, vowel signs, joiners
    let clusters = text.grapheme_indices(true);
    let mut chars = clusters.filter_map(|(at, cluster)| Some((at, cluster.chars().next()?))).peekable();
    let Some((_, first)) = chars.next() else { return 0 };
    let mut before = first;
    while let Some((at, c)) = chars.next() {
        let goes_on = match class(c) {
            Class::Space | Class::Single => false,
            Class::Punctuation if class(first) == Class::Letter => binds(before, c, chars.peek().map(|(_, c)| *c)),
            Class::Punctuation => c == first, // "..." and "--" are one mark
            same => same == class(first),
        };
        if !goes_on {
            return at;
        }
        before = c;
    }
    text.len()
}

/// The tokens of a text as they are spelled in it.
pub fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c| class(c) == Class::Space);
        let (token, behind) = rest.split_at(token_len(rest));
        rest = behind;
        (!token.is_empty()).then_some(token)
    })
}

/// Whether a token is more than punctuation.
pub fn is_word(token: &str) -> bool {
    token.chars().any(|c| matches!(class(c), Class::Letter | Class::Single | Class::Picture))
}

/// What makes two tokens the same word.
fn key(token: &str) -> String {
    let lower = token.to_lowercase();
    if is_word(token) { lower.replace('’', "'").replace(['‐', '‑'], "-") } else { lower }
}

/// Follows where sentences start.
struct Sentences {
    start: bool,
    ender: char,
}

impl Sentences {
    fn new() -> Self {
        Sentences { start: true, ender: '.' }
    }

    /// Whether this token is at the start of a sentence.
    fn at_start(&mut self, token: &str) -> bool {
        let start = self.start;
        let first = token.chars().next().unwrap_or(' ');
        match first {
            '.' if token.len() > 1 => {}
            '.' | '!' | '?' | '。' | '！' | '？' | '।' => (self.start, self.ender) = (true, first),
            // “Come!” she said: only a full stop before the closing mark is sure to end the sentence
            '”' | '»' | '"' if self.ender != '.' => self.start = false,
            _ if is_word(token) => (self.start, self.ender) = (false, '.'),
            _ => {}
        }
        start
    }
}

/// The words of a text, numbered in the order of their first appearance.
///
/// ```
/// let words = everloop::text::Vocabulary::of("the cat, the hat");
/// let ids = words.encode("the hat").unwrap();
/// assert_eq!(words.decode(&ids).unwrap(), "The hat");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocabulary {
    spellings: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// The vocabulary of a text.
    pub fn of(text: &str) -> Self {
        let mut vocabulary = Vocabulary::default();
        // the capital at the start of a sentence tells nothing, a small letter inside of one tells all
        let mut known = Vec::new();
        let mut sentences = Sentences::new();
        for token in tokens(text) {
            let (key, start) = (key(token), sentences.at_start(token));
            let lower = !token.chars().any(char::is_uppercase);
            let spelling = if start { token.to_lowercase() } else { token.to_string() };
            match vocabulary.ids.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(vocabulary.spellings.len() as u32);
                    vocabulary.spellings.push(spelling);
                    known.push(!start);
                }
                Entry::Occupied(entry) => {
                    let id = *entry.get() as usize;
                    if !start && (lower || !known[id]) {
                        (vocabulary.spellings[id], known[id]) = (spelling, true);
                    }
                }
            }
        }
        vocabulary
    }

    /// Number of different tokens.
    pub fn len(&self) -> usize {
        self.spellings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spellings.is_empty()
    }

    /// The spelling of a token.
    pub fn word(&self, id: u32) -> Option<&str> {
        self.spellings.get(id as usize).map(String::as_str)
    }

    /// The ids of a text's tokens. Error: tokens that are not in the vocabulary, by name.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let (mut ids, mut unknown) = (Vec::new(), Vec::new());
        for token in tokens(text) {
            let id = self.ids.get(&key(token));
            if id.is_none() && !unknown.contains(&token) {
                unknown.push(token);
            }
            ids.extend(id);
        }
        let found = format!("`{}`", unknown.join("`, `"));
        ensure!(unknown.is_empty(), Error::config("encoding a text", "words of the vocabulary", found));
        Ok(ids)
    }

    /// The text of ids, with spaces round the marks as they should be and sentences that start with a capital.
    /// Error: an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = String::new();
        let mut sentences = Sentences::new();
        let mut open = Vec::new(); // straight quotes that are not closed yet
        let mut glued = true;
        for id in ids {
            let token = self
                .word(*id)
                .ok_or_else(|| Error::config("decoding a text", format!("ids below {}", self.len()), id))?;
            let (first, before) = (token.chars().next().unwrap_or(' '), text.chars().next_back().unwrap_or(' '));
            let straight = matches!(token, "\"" | "'");
            let closes = straight && open.contains(&token) || is_closing(first);
            if !(glued || closes || is_wide(before) && is_wide(first)) {
                text.push(' ');
            }
            if sentences.at_start(token) {
                text.extend(first.to_uppercase());
                text.push_str(&token[first.len_utf8()..]);
            } else {
                text.push_str(token);
            }
            glued = straight && !closes || is_opening(first);
            if straight && closes {
                open.retain(|mark| *mark != token);
            } else if straight {
                open.push(token);
            }
        }
        Ok(text)
    }
}

fn is_opening(c: char) -> bool {
    matches!(c, '(' | '[' | '{' | '“' | '‘' | '„' | '‚' | '«' | '‹' | '¿' | '¡' | '$' | '£' | '€' | '#' | '@')
}

fn is_closing(c: char) -> bool {
    matches!(
        c,
        '.' | ',' | '!' | '?' | ';' | ':' | '…' | ')' | ']' | '}' | '”' | '’' | '»' | '›' | '%' | '।' | '؟' | '،'
    )
}

/// Characters that stand side by side without a space, with the punctuation of their scripts.
fn is_wide(c: char) -> bool {
    class(c) == Class::Single || matches!(c, '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ffef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        tokens(text).collect()
    }

    /// What is left of a text that goes through ids and back.
    fn round(text: &str) -> String {
        let vocabulary = Vocabulary::of(text);
        vocabulary.decode(&vocabulary.encode(text).unwrap()).unwrap()
    }

    #[test]
    fn words_and_marks() {
        assert_eq!(split("Don't stop -- it's well-known!"), ["Don't", "stop", "--", "it's", "well-known", "!"]);
        assert_eq!(split("pi is 3.14, or 3. So..."), ["pi", "is", "3.14", ",", "or", "3", ".", "So", "..."]);
        assert_eq!(split("\u{feff}one\r\n\u{0}two- 'three'"), ["one", "two", "-", "'", "three", "'"]);
        assert!(split(" \t\n\u{feff}").is_empty() && split("").is_empty());
    }

    #[test]
    fn other_scripts() {
        assert_eq!(split("Ο Νείλος, नमस्ते दुनिया।"), ["Ο", "Νείλος", ",", "नमस्ते", "दुनिया", "।"]);
        assert_eq!(split("我爱你。"), ["我", "爱", "你", "。"]);
        assert_eq!(split("cafe\u{301} hello😀🎉 👩\u{200d}🚀!"), ["cafe\u{301}", "hello", "😀🎉", "👩\u{200d}🚀", "!"]);
        assert_eq!(round("我爱你。你爱我。"), "我爱你。你爱我。");
        assert_eq!(round("Привет, мир! 🎉"), "Привет, мир! 🎉");
    }

    #[test]
    fn spaces_and_capitals_come_back() {
        for text in [
            "“Come,” said Ada. “I know (a little) of it.” She did; we didn’t.",
            "He said \"so it is\" and left. The \"end\" of it: 50% of $3.",
            "“Run!” she cried. “Why?” asked Tom.",
            "Wait... for what?",
        ] {
            assert_eq!(round(text), text);
        }
    }

    #[test]
    fn the_same_word_in_any_case_and_with_any_apostrophe() {
        let vocabulary = Vocabulary::of("The cat doesn’t see THE dog, the dog sees Ada. Cats see Ada.");
        assert_eq!(vocabulary.encode("the THE The doesn't DOESN’T").unwrap(), [0, 0, 0, 2, 2]);
        assert_eq!(vocabulary.decode(&vocabulary.encode("see ada see the").unwrap()).unwrap(), "See Ada see the");
        assert_eq!(vocabulary.word(1), Some("cat"));
    }

    #[test]
    fn strangers_are_named() {
        let vocabulary = Vocabulary::of("one two");
        let message = vocabulary.encode("one six two six Seven!").unwrap_err().to_string();
        assert!(message.contains("`six`, `Seven`, `!`"), "{message}");
        assert!(vocabulary.decode(&[2]).is_err());
        assert!(!is_word("...") && is_word("🎉") && is_word("x"));
    }
}

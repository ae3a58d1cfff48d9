//! Names and messages: whatever a file holds, a message is one short line.

use crate::error::Error;

/// Longest form of a name in a message, in characters.
const NAME: usize = 80;
/// Longest cause, in characters. With a subject of at most `NAME` + 30 every message stays under 300.
const CAUSE: usize = 180;

/// A name for messages: control and invisible characters escaped, long ones cut in the middle.
pub(super) fn escape(name: &str) -> String {
    // an escape takes at most 10 characters, so what lies in the middle of a huge name is never looked at
    let count = name.chars().take(NAME + 1).count();
    let text: String = if count <= NAME {
        name.escape_debug().collect()
    } else {
        let head: String = name.chars().take(NAME).collect();
        let tail: String = name.chars().rev().take(NAME).collect();
        let tail: String = tail.chars().rev().collect();
        format!("{}{}", head.escape_debug(), tail.escape_debug())
    };
    let text: Vec<char> = text.chars().collect();
    if count <= NAME && text.len() <= NAME {
        return text.into_iter().collect();
    }
    let half = NAME / 2 - 1;
    text[..half].iter().chain(&['.', '.']).chain(&text[text.len() - half..]).collect()
}

/// A text that may quote a file, without its control and invisible characters.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::new();
    for c in text.chars().take(CAUSE) {
        match c {
            '"' | '\'' | '\\' => printable.push(c),
            _ => printable.extend(c.escape_debug()),
        }
    }
    printable
}

fn cut(text: String, most: usize) -> String {
    if text.chars().count() <= most { text } else { text.chars().take(most - 2).chain("..".chars()).collect() }
}

/// An error about the tensor `name`.
pub(super) fn tensor(name: &str, cause: impl Into<String>) -> Error {
    Error::Weights { what: format!("tensor `{}`", escape(name)), cause: cut(cause.into(), CAUSE) }
}

/// An error about the stored configuration of `name`.
pub(super) fn config(name: &str, cause: impl Into<String>) -> Error {
    Error::Weights { what: format!("config of `{}`", escape(name)), cause: cut(cause.into(), CAUSE) }
}

/// An error about the header or the file as a whole.
pub(super) fn file(cause: impl Into<String>) -> Error {
    Error::Weights { what: "weights file".to_string(), cause: cut(cause.into(), CAUSE) }
}

/// An error about the file at `path`.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn path(path: &std::path::Path, cause: impl std::fmt::Display) -> Error {
    let name = escape(&path.to_string_lossy());
    Error::Weights { what: format!("weights file `{name}`"), cause: cut(cause.to_string(), CAUSE) }
}

/// A shape for messages: the first eight sizes.
pub(super) fn shape(sizes: &[usize]) -> String {
    let shown: Vec<String> = sizes.iter().take(8).map(ToString::to_string).collect();
    let more = if sizes.len() > 8 { format!(", .. {} sizes", sizes.len()) } else { String::new() };
    cut(format!("[{}{more}]", shown.join(", ")), 90)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_printable() {
        for name in ["\n\u{202e}\0".repeat(50_000), "x".repeat(81), "\u{10ffff}".repeat(80), String::new()] {
            let message = tensor(&name, "\u{e9}".repeat(1000)).to_string();
            assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
        }
        assert_eq!(escape("a.b"), "a.b");
    }
}

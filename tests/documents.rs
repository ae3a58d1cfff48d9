//! What the documents say must be what is there.

use std::path::Path;

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn the_readme_shows_the_example_hello() {
    let (readme, hello) = (read("README.md"), read("examples/hello.rs"));
    assert!(readme.contains(&format!("```rust\n{}```", hello)), "README.md and examples/hello.rs differ");
    let library = read("src/lib.rs")
        .lines()
        .filter_map(|l| l.strip_prefix("//!"))
        .fold(String::new(), |text, line| text + line.strip_prefix(' ').unwrap_or(line) + "\n");
    let code = &hello[hello.find("use everloop").unwrap()..];
    assert!(library.contains(code), "src/lib.rs and examples/hello.rs differ");
}

#[test]
fn files_named_in_the_documents_exist() {
    for document in
        ["README.md", "ARCHITECTURE.md", "DESIGN.md", "CONTRIBUTING.md", "docs/lstm.md", "docs/reference.md"]
    {
        for word in read(document).split('`').skip(1).step_by(2) {
            let is_path =
                ["src/", "shaders/", "tests/", "examples/", "docs/", "benches/"].iter().any(|f| word.starts_with(f));
            if is_path && !word.contains([' ', '*', '{', '<']) {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(word).exists(), "{document} names `{word}`");
            }
        }
    }
}

/// Relative links, which rustdoc does not check; `](#anchors)` and addresses elsewhere are left alone.
#[test]
fn links_between_the_documents_resolve() {
    let broken = |document: &str, text: &str| -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
        let folder = folder.parent().unwrap();
        let inline = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
        let defined = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: ").map(|(_, to)| to));
        let files = inline.chain(defined).map(|to| to.split('#').next().unwrap_or_default());
        let relative = files.filter(|to| !to.is_empty() && !to.contains("://"));
        relative.filter(|to| !folder.join(to).exists()).map(str::to_string).collect()
    };
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/lstm.md", "docs/reference.md"] {
        assert_eq!(broken(document, &read(document)), [""; 0], "{document}");
    }
    let planted = "[a](lstm.md) ![b](none.svg)\n[c]: ../src/none.rs\n[d]: https://example.org";
    assert_eq!(broken("docs/lstm.md", planted), ["none.svg", "../src/none.rs"]);
}

#[test]
fn the_library_has_one_unsafe_block() {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.lines().filter(|l| l.trim_start().starts_with("unsafe {")).map(|_| path.clone()));
            }
        }
    }
    assert!(found.len() == 1 && found[0].ends_with("matmul.rs"), "{found:?}");
}

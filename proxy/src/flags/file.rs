//! The config file: YAML whose keys are the names of flags, and `client-identity`, which is no flag.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::nearest::nearest;
use crate::go;

/// All flags with long values fit into a fraction of this; a larger file is some other file, or a device without end.
const MAX_BYTES: u64 = 1 << 20;

/// The flag that names the file cannot stand in it.
const CONFIG_FILE: &str = "config-file";
/// No flag: it has keys below it, and is read and judged as strictly by whoever makes tenants of it.
const CLIENT_IDENTITY: &str = "client-identity";

/// A value as its flag would be given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileValue {
    Text(String),
    /// The items of a slice, each as it is: a comma inside one does not divide it.
    List(Vec<String>),
}

/// The settings of a file; `kinds` has the type of each flag by name.
pub(super) fn read(path: &Path, kinds: &BTreeMap<&str, &str>) -> Result<Vec<(String, FileValue)>, String> {
    let mut text = String::new();
    let mut file = File::open(path).map_err(|error| error.to_string())?.take(MAX_BYTES + 1);
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    settings(&text, kinds)
}

pub(super) fn settings(text: &str, kinds: &BTreeMap<&str, &str>) -> Result<Vec<(String, FileValue)>, String> {
    let mapping = match serde_yaml::from_str(text).map_err(|error| error.to_string())? {
        Value::Null => Mapping::new(),
        Value::Mapping(mapping) => mapping,
        _ => return Err("want lines of the form `flag: value`".to_owned()),
    };
    let of_flags = mapping.into_iter().filter(|(key, _)| key != CLIENT_IDENTITY);
    of_flags.map(|(key, value)| setting(key, value, kinds)).collect()
}

fn setting(key: Value, value: Value, kinds: &BTreeMap<&str, &str>) -> Result<(String, FileValue), String> {
    let Value::String(key) = key else {
        return Err(format!("key {} is not the name of a flag", shown(&key)));
    };
    let quoted = go::quote(&key);
    let Some(kind) = kinds.get(key.as_str()) else {
        let hint = nearest(&key, kinds.keys().copied());
        let hint = hint.map(|name| format!(", did you mean {name}?")).unwrap_or_default();
        return Err(format!("unknown key {quoted}{hint}"));
    };
    if key == CONFIG_FILE {
        return Err(format!("key {quoted} cannot stand in a config file"));
    }
    let value = match value {
        Value::String(text) => FileValue::Text(text),
        Value::Null => return Err(format!("key {quoted} has no value; write \"\" for an empty one")),
        Value::Mapping(_) => return Err(format!("key {quoted} has keys below it; want one value")),
        Value::Tagged(_) => return Err(format!("key {quoted} has a YAML tag; want a plain value")),
        Value::Sequence(items) if *kind == "strings" => {
            FileValue::List(items.into_iter().map(|item| text_item(&quoted, item)).collect::<Result<_, _>>()?)
        }
        Value::Sequence(_) => return Err(format!("key {quoted} has a list; want one value")),
        // Read as a number or a boolean, a text may have lost its spelling: 1e3 is not 1000, nor 0x10 16.
        Value::Bool(_) | Value::Number(_) if matches!(*kind, "string" | "strings") => {
            return Err(format!("key {quoted} wants a text; put its value into quotes"));
        }
        Value::Bool(value) => FileValue::Text(value.to_string()),
        Value::Number(value) => FileValue::Text(value.to_string()),
    };
    Ok((key, value))
}

fn text_item(quoted_key: &str, item: Value) -> Result<String, String> {
    match item {
        Value::String(text) => Ok(text),
        other => Err(format!("key {quoted_key} has the item {}; want texts, in quotes if need be", shown(&other))),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => go::quote(value),
        Value::Sequence(_) => "[...]".to_owned(),
        Value::Mapping(_) => "{...}".to_owned(),
        Value::Tagged(value) => value.tag.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([
            ("endpoints", "strings"),
            ("listen-addr", "string"),
            ("debug", "bool"),
            ("max-send-bytes", "int"),
            ("drain-timeout", "duration"),
            ("config-file", "string"),
        ])
    }

    fn check(text: &str, expected: Result<&[(&str, FileValue)], &str>) {
        let expected = expected
            .map(|settings| settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Vec<_>>())
            .map_err(str::to_owned);
        assert_eq!(settings(text, &kinds()), expected, "{text}");
    }

    fn text(text: &str) -> FileValue {
        FileValue::Text(text.to_owned())
    }

    #[test]
    fn values_are_taken_as_their_flags_would_be_given_them() {
        check("", Ok(&[]));
        check("# nothing\n", Ok(&[]));
        check(
            "listen-addr: 127.0.0.1:1\ndebug: true\n",
            Ok(&[("listen-addr", text("127.0.0.1:1")), ("debug", text("true"))]),
        );
        check(
            "max-send-bytes: 5\ndrain-timeout: 1m\n",
            Ok(&[("max-send-bytes", text("5")), ("drain-timeout", text("1m"))]),
        );
        check("endpoints: a,b", Ok(&[("endpoints", text("a,b"))]));
        check("endpoints: [a, 'b,c']", Ok(&[("endpoints", FileValue::List(vec!["a".into(), "b,c".into()]))]));
        check("endpoints: []", Ok(&[("endpoints", FileValue::List(vec![]))]));
        check("listen-addr: ''", Ok(&[("listen-addr", text(""))]));
    }

    #[test]
    fn what_is_no_list_of_settings_is_refused_with_what_would_be_right() {
        check("endpoint: a", Err("unknown key \"endpoint\", did you mean endpoints?"));
        check("listen_addr: a", Err("unknown key \"listen_addr\", did you mean listen-addr?"));
        check("other: a", Err("unknown key \"other\""));
        check("1: a", Err("key 1 is not the name of a flag"));
        check("config-file: a", Err("key \"config-file\" cannot stand in a config file"));
        check("debug:", Err("key \"debug\" has no value; write \"\" for an empty one"));
        check("debug: {a: b}", Err("key \"debug\" has keys below it; want one value"));
        check("debug: [true]", Err("key \"debug\" has a list; want one value"));
        check("debug: !x true", Err("key \"debug\" has a YAML tag; want a plain value"));
        check("listen-addr: 1e3", Err("key \"listen-addr\" wants a text; put its value into quotes"));
        check("endpoints: [a, 1]", Err("key \"endpoints\" has the item 1; want texts, in quotes if need be"));
        check("[a]", Err("want lines of the form `flag: value`"));
        check("a: b: c", Err("mapping values are not allowed in this context at line 1 column 5"));
        let twice = settings("debug: true\ndebug: false", &kinds()).unwrap_err();
        assert!(twice.contains("duplicate entry with key \"debug\""), "{twice}");
        let two_documents = settings("debug: true\n---\ndebug: false", &kinds()).unwrap_err();
        assert!(two_documents.contains("more than one document"), "{two_documents}");
    }

    #[test]
    fn a_file_that_cannot_be_read_or_never_ends_is_refused() {
        let missing = read(Path::new("/nonexistent/file"), &kinds()).unwrap_err();
        assert!(missing.contains("No such file"), "{missing}");
        assert_eq!(read(Path::new("/dev/zero"), &kinds()), Err("it is larger than 1048576 bytes".into()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "([-a-z0-9:{}\\[\\]!&*<|>'\"#%,\n ]{0,40})|(\\PC{0,40})") {
            let _ = settings(&text, &kinds());
        }
    }
}

//! Any input at all.

use super::*;

fn any_word() -> impl Strategy<Value = OsString> {
    let names: Vec<String> = names();
    prop_oneof![
        Just(OsString::from("grpc-proxy")),
        Just(OsString::from("start")),
        "(--|-)?[-a-z0-9=,\"\n:. ]{0,12}".prop_map(OsString::from),
        (proptest::sample::select(names), "=?[-a-z0-9=,\"\n:.]{0,8}")
            .prop_map(|(name, rest)| format!("--{name}{rest}").into()),
        proptest::collection::vec(any::<u8>(), 0..6).prop_map(OsString::from_vec),
    ]
}

proptest! {
    #[test]
    fn no_command_line_makes_the_parser_panic(words in proptest::collection::vec(any_word(), 0..6), started in any::<bool>()) {
        let beginning = if started { arguments(&START) } else { vec![] };
        if let Ok(Invocation::Start { flags, .. }) = parse(beginning.into_iter().chain(words), &BTreeMap::new()) {
            let _ = (flags.check(), flags.metrics_urls(), flags.effective());
        }
    }

    #[test]
    fn no_config_file_makes_the_parser_panic(lines in proptest::collection::vec((proptest::sample::select(names()), "[-\\[\\]{}a-z0-9,:'\" ]{0,10}"), 0..4)) {
        let text: String = lines.into_iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        if let Ok((flags, _)) = with_file(&text) {
            let _ = flags.check();
        }
    }
}

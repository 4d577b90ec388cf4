//! Values of devices as parts of keys, as Hive writes them.
//!
//! **Danger.** A value is a stranger's: without this, a device named `../../etc` would choose where its rows lie. So a value never
//! makes a folder of its own, never leads out of one, and hides nothing from readers, who leave out names that begin with `_` or `.`.

use std::fmt::Write as _;

/// Hive's word for a null, which readers know.
pub(super) const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// Appends a value: letters, digits, `-`, `_`, `.` and `@` as they are, all else as `%` and two digits a byte.
pub(in crate::sinks::parquet) fn push_value(path: &mut String, value: &str) {
    if value.is_empty() {
        // As Hive has it, which knows no empty name.
        return path.push_str(NULL);
    }
    let only_dots = value.chars().all(|c| c == '.');
    let begins = path.is_empty() || path.ends_with('/');
    for (place, c) in value.char_indices() {
        let is_hidden = begins && place == 0 && matches!(c, '.' | '_');
        let is_plain = c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if is_plain && !is_hidden && !only_dots {
            path.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to text does not fail.
                write!(path, "%{byte:02X}").ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(path: &str, value: &str) -> String {
        let mut path = path.to_owned();
        push_value(&mut path, value);
        path
    }

    #[test]
    fn what_a_path_would_read_otherwise_is_escaped_as_hive_does() {
        for (value, expected) in [
            ("device-7", "device-7"),
            ("aa:bb:cc", "aa%3Abb%3Acc"),
            ("a/b\\c", "a%2Fb%5Cc"),
            ("100%", "100%25"),
            ("a=b", "a%3Db"),
            ("a b\n", "a%20b%0A"),
            ("Zürich", "Zürich"),
            ("\u{202e}gnp", "%E2%80%AEgnp"),
            ("", NULL),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("../../etc", "%2E.%2F..%2Fetc"),
            (".hidden", "%2Ehidden"),
            ("_hidden", "%5Fhidden"),
            ("a.b_c", "a.b_c"),
        ] {
            assert_eq!(after("", value), expected, "{value:?}");
        }
        assert_eq!(after("device=", "_a"), "device=_a", "hidden is only what begins a name");
        assert_eq!(after("x/.", "."), "x/.%2E");
    }

    proptest! {
        #[test]
        fn a_value_is_one_name_and_reads_back(value in any::<String>().prop_filter("null", |value| !value.is_empty())) {
            let path = after("", &value);
            prop_assert!(!path.contains('/') && path != "." && path != ".." && !path.chars().any(char::is_control));
            let mut bytes = Vec::new();
            let mut rest = path.bytes();
            while let Some(byte) = rest.next() {
                let mut digit = || rest.next().map(|digit| (digit as char).to_digit(16).unwrap() as u8).unwrap();
                bytes.push(if byte == b'%' { digit() * 16 + digit() } else { byte });
            }
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), value);
        }
    }
}

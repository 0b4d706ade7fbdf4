//! What stands behind the question mark of a URL, as Go's `url.ParseQuery` reads it.

/// Names and values in their order; a name may come more than once, or without a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// A pair that cannot be decoded is left out, as in Go.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        let decoded = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        Self(decoded.collect())
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(rest.next()?)? * 16 + digit(rest.next()?)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_repeat_stand_alone_and_be_escaped() {
        let query = Query::parse("exclude=NOSPACE&verbose&exclude=COR%52UPT&a+b=%zz&c;d=1&&x=%4");
        assert_eq!(query.all("exclude").collect::<Vec<_>>(), ["NOSPACE", "CORRUPT"]);
        assert_eq!(query.first("verbose"), Some(""));
        assert_eq!(query.first("a b"), None);
        assert_eq!((query.first("d"), query.first("x")), (None, None));
        assert_eq!(Query::parse(""), Query(Vec::new()));
    }
}

//! The name that a mistyped one was probably meant to be.

/// The name that a mistyped one most likely stands for.
pub(super) fn nearest<'a>(mistyped: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Two typing errors; in short names, where two letters are half of it, only one.
    let tolerance = if mistyped.chars().count() < 5 { 1 } else { 2 };
    names
        .map(|name| (distance(mistyped, name), name))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, name)| name)
}

/// How many letters must be put in, taken out or changed to make one text of the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    // Names of flags are short; a longer text is none of them, and must not cost the square of its length.
    const LONGEST: usize = 64;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let changed = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

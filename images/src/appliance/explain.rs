//! Says in our words what the TOML parser found, with line, key and table.

use super::APPLIANCE_VERSION;

/// Refuses another version of the format before its unknown keys are.
pub(super) fn check_version(text: &str) -> Result<(), (usize, String)> {
    // What is no TOML at all is reported by the parser proper.
    let Ok(table) = text.parse::<toml::Table>() else {
        return Ok(());
    };
    match table.get("version") {
        Some(toml::Value::Integer(APPLIANCE_VERSION)) => Ok(()),
        Some(other) => {
            let line = text
                .lines()
                .position(|line| key_of(line) == Some("version"))
                .map_or(1, |i| i + 1);
            Err((
                line,
                format!(
                    "key \"version\": this program reads version {APPLIANCE_VERSION} of appliance files, not {other}"
                ),
            ))
        }
        None => Err((
            1,
            format!("missing key \"version\": write `version = {APPLIANCE_VERSION}`"),
        )),
    }
}

/// Line and message for an error of the TOML parser.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> (usize, String) {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let message = error.message().trim().replace('`', "");
    let table = table_at(text, line);
    let place = table
        .as_ref()
        .map_or_else(|| "at the top level".to_owned(), |t| format!("in [{t}]"));
    if text.parse::<toml::Table>().is_err() {
        return (line, format!("not TOML: {}", one_line(&message)));
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (key, expected) = rest.split_once(", ").unwrap_or((rest, ""));
        // An unknown table is reported at its own header.
        let place = if table.as_deref() == Some(key) {
            "at the top level".to_owned()
        } else {
            place
        };
        return (line, format!("unknown key \"{key}\" {place}; {expected}"));
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        if table.is_none() && key == "image" {
            return (line, format!("missing table [{key}]"));
        }
        return (line, format!("missing key \"{key}\" {place}"));
    }
    match key_at(text, line) {
        Some(key) => (
            line,
            format!("key \"{key}\" {place}: {}", one_line(&message)),
        ),
        None => (line, format!("{place}: {}", one_line(&message))),
    }
}

/// Whether there is a header `[table]`.
pub(super) fn has_table(text: &str, table: &str) -> bool {
    text.lines()
        .any(|line| header_of(line).as_deref() == Some(table))
}

/// Whether table `table` has `key`.
pub(super) fn has_key(text: &str, table: &str, key: &str) -> bool {
    let Ok(document) = text.parse::<toml::Table>() else {
        return false;
    };
    let table = document.get(table).and_then(toml::Value::as_table);
    table.is_some_and(|table| table.contains_key(key))
}

/// Line of the header `[table]`, of the one of this number (from 0) if there are several; or 1.
pub(super) fn line_of_table(text: &str, table: &str, number: usize) -> usize {
    text.lines()
        .enumerate()
        .filter(|(_, line)| header_of(line).as_deref() == Some(table))
        .nth(number)
        .map_or(1, |(i, _)| i + 1)
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

/// Lines up to `line`, backwards.
fn upwards(text: &str, line: usize) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    lines.into_iter().rev()
}

/// The table whose header is the last one up to `line`.
fn table_at(text: &str, line: usize) -> Option<String> {
    upwards(text, line).find_map(header_of)
}

/// The key that the value at `line` belongs to, if a table's header is not nearer.
fn key_at(text: &str, line: usize) -> Option<&str> {
    upwards(text, line)
        .take_while(|line| header_of(line).is_none())
        .find_map(key_of)
}

/// `a.b` of a line `[a.b]` or `[[a.b]]`. A line within a multi-line array can start with `[` too; its contents are no key.
fn header_of(line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    let inner = inner
        .strip_prefix('[')
        .and_then(|i| i.strip_suffix(']'))
        .unwrap_or(inner)
        .trim();
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!inner.is_empty() && inner.chars().all(is_key)).then(|| inner.to_owned())
}

fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!key.is_empty() && key.chars().all(is_key)).then_some(key)
}

//! Reads a TOML text by its spans, so that every message names line, key and table and says what is possible.

use std::fmt::Display;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Line (from 1) and message.
pub(super) type Problem = (usize, String);

/// How alike two names must be (Jaro–Winkler, 0 to 1) for one to be offered in place of the other.
const ALIKE: f64 = 0.75;
/// So many names are listed beside the one that was probably meant.
const FEW: usize = 6;

/// The text, for lines of spans.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl Text<'_> {
    /// Line of a byte offset, from 1.
    pub(super) fn line(self, offset: usize) -> usize {
        let before = self.0.as_bytes().get(..offset).unwrap_or(self.0.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// `"a", "b" and "c"`.
pub(super) fn listed<T: Display>(names: impl IntoIterator<Item = T>, last: &str) -> String {
    let mut names: Vec<String> = names
        .into_iter()
        .map(|name| format!("\"{name}\""))
        .collect();
    match (names.pop(), names.is_empty()) {
        (None, _) => String::new(),
        (Some(only), true) => only,
        (Some(end), false) => format!("{} {last} {end}", names.join(", ")),
    }
}

/// The known name that is most like `name`, if one is: by the fewest letters that are other or swapped, at most a third of them;
/// else by likeness.
pub(super) fn alike<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let few = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| {
            let edits = strsim::osa_distance(name, candidate);
            let likeness = strsim::jaro_winkler(name, candidate);
            let near = if edits <= few { few + 1 - edits } else { 0 };
            (near, likeness, candidate)
        })
        .filter(|(near, likeness, _)| *near > 0 || *likeness >= ALIKE)
        .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .map(|(_, _, candidate)| candidate)
}

/// `; did you mean "x"?` and, if they are few, what is possible.
pub(super) fn instead(name: &str, known: &[&str]) -> String {
    let possible = format!("possible: {}", listed(known, "and"));
    match alike(name, known.iter().copied()) {
        Some(other) if known.len() <= FEW => {
            format!("; did you mean \"{other}\"? {possible}")
        }
        Some(other) => format!("; did you mean \"{other}\"?"),
        None => format!("; {possible}"),
    }
}

/// A table and how messages call it.
pub(super) struct Table<'t> {
    text: Text<'t>,
    /// `in [workload]`, `in [[fault]] "regs"`, or `at the top level`.
    pub(super) place: String,
    /// Line of its header.
    pub(super) line: usize,
    table: &'t DeTable<'t>,
}

impl<'t> Table<'t> {
    pub(super) fn new(text: Text<'t>, table: &'t Spanned<DeTable<'t>>, place: &str) -> Self {
        Self {
            text,
            place: place.to_owned(),
            line: text.line(table.span().start),
            table: table.get_ref(),
        }
    }

    /// A problem with the table itself.
    pub(super) fn problem(&self, message: impl Display) -> Problem {
        (self.line, format!("{}: {message}", self.place))
    }

    /// A problem with one of its keys, in the line of the key; in that of the header if the key is not there.
    pub(super) fn problem_at(&self, key: &str, message: impl Display) -> Problem {
        let line = self.key_line(key).unwrap_or(self.line);
        (line, format!("key `{key}` {}: {message}", self.place))
    }

    fn key_line(&self, key: &str) -> Option<usize> {
        let found = self.table.keys().find(|k| k.get_ref() == key)?;
        Some(self.text.line(found.span().start))
    }

    /// Refuses keys that are not in `known`; the first one in the file.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let unknown = |key: &&Spanned<_>| {
            let key: &Spanned<std::borrow::Cow<'_, str>> = key;
            !known.contains(&key.get_ref().as_ref())
        };
        let first = self
            .table
            .keys()
            .filter(unknown)
            .min_by_key(|key| key.span().start);
        match first {
            None => Ok(()),
            Some(key) => Err((
                self.text.line(key.span().start),
                format!(
                    "unknown key `{}` {}{}",
                    key.get_ref(),
                    self.place,
                    instead(key.get_ref(), known)
                ),
            )),
        }
    }

    /// Its keys in the order of the file.
    pub(super) fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<_> = self.table.keys().collect();
        keys.sort_by_key(|key| key.span().start);
        keys.into_iter().map(|key| key.get_ref().as_ref()).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value of a key that may be absent.
    pub(super) fn get<'s>(&'s self, key: &'s str) -> Option<Value<'s, 't>> {
        let value = self.table.get(key)?;
        Some(Value {
            table: self,
            key,
            value,
        })
    }

    /// The value of a key that must be there; `example` is what could be written.
    pub(super) fn need<'s>(
        &'s self,
        key: &'s str,
        example: &str,
    ) -> Result<Value<'s, 't>, Problem> {
        self.get(key).ok_or_else(|| {
            (
                self.line,
                format!("missing key `{key}` {}: write `{example}`", self.place),
            )
        })
    }
}

/// A value with the key it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Value<'s, 't> {
    table: &'s Table<'t>,
    key: &'s str,
    value: &'t Spanned<DeValue<'t>>,
}

impl<'s, 't> Value<'s, 't> {
    pub(super) fn problem(&self, message: impl Display) -> Problem {
        (
            self.table.text.line(self.value.span().start),
            format!("key `{}` {}: {message}", self.key, self.table.place),
        )
    }

    fn kind(&self) -> &'static str {
        match self.value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }

    pub(super) fn wanted(&self, what: &str) -> Problem {
        self.problem(format!("this is {}, not {what}", self.kind()))
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.get_ref().is_array()
    }

    pub(super) fn is_integer(&self) -> bool {
        self.value.get_ref().is_integer()
    }

    pub(super) fn text(&self) -> Result<&'t str, Problem> {
        self.value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.wanted("text in quotes"))
    }

    /// Text that is not empty and has no NUL.
    pub(super) fn words(&self) -> Result<String, Problem> {
        let text = self.text()?;
        if text.trim().is_empty() || text.contains('\0') {
            return Err(self.problem("is empty or has a NUL character"));
        }
        Ok(text.to_owned())
    }

    pub(super) fn boolean(&self) -> Result<bool, Problem> {
        self.value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.wanted("true or false"))
    }

    fn any_integer(&self) -> Result<i64, Problem> {
        let integer = self
            .value
            .get_ref()
            .as_integer()
            .ok_or_else(|| self.wanted("a whole number"))?;
        i64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| self.problem(format!("{} is too large", integer.as_str())))
    }

    pub(super) fn signed(&self, range: RangeInclusive<i64>) -> Result<i64, Problem> {
        let value = self.any_integer()?;
        if !range.contains(&value) {
            return Err(self.problem(format!(
                "{value} is not possible: {} to {}",
                range.start(),
                range.end()
            )));
        }
        Ok(value)
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, Problem> {
        let value = self.any_integer()?;
        match u64::try_from(value) {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => Err(self.problem(format!(
                "{value} is not possible: {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// A number, with a fraction or without.
    pub(super) fn number(&self) -> Result<f64, Problem> {
        match self.value.get_ref() {
            // Whole numbers of a campaign are far below 2^53.
            #[allow(clippy::cast_precision_loss)]
            DeValue::Integer(_) => Ok(self.any_integer()? as f64),
            DeValue::Float(float) => float
                .as_str()
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
                .ok_or_else(|| self.problem(format!("{} is not a number", float.as_str()))),
            _ => Err(self.wanted("a number")),
        }
    }

    /// One of some names.
    pub(super) fn one_of<T: Copy>(&self, known: &[(&'static str, T)]) -> Result<T, Problem> {
        let text = self.text()?;
        known
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                self.problem(format!("unknown value \"{text}\"{}", instead(text, &names)))
            })
    }

    /// The items of a list that is not empty.
    pub(super) fn list(&self) -> Result<Vec<Value<'s, 't>>, Problem> {
        let items = self
            .value
            .get_ref()
            .as_array()
            .ok_or_else(|| self.wanted("a list"))?;
        if items.is_empty() {
            return Err(self.problem("the list is empty"));
        }
        Ok(items.iter().map(|value| Value { value, ..*self }).collect())
    }

    /// The items of a list, or the value alone.
    pub(super) fn one_or_list(&self) -> Result<Vec<Value<'s, 't>>, Problem> {
        if self.is_list() {
            self.list()
        } else {
            Ok(vec![*self])
        }
    }

    /// A table, with how it is to be called.
    pub(super) fn table(&self, place: &str) -> Result<Table<'t>, Problem> {
        let table = self.value.get_ref().as_table().ok_or_else(|| {
            self.wanted(&format!(
                "a table: write {}",
                place.trim_start_matches("in ")
            ))
        })?;
        Ok(Table {
            text: self.table.text,
            place: place.to_owned(),
            line: self.table.text.line(self.value.span().start),
            table,
        })
    }
}

/// Parses the text; an error says that it is no TOML.
pub(super) fn document<'t>(text: &'t str) -> Result<Spanned<DeTable<'t>>, Problem> {
    DeTable::parse(text).map_err(|error| {
        let line = Text(text).line(error.span().map_or(0, |span| span.start));
        let message: Vec<&str> = error.message().trim().lines().collect();
        (line, format!("not TOML: {}", message.join("; ")))
    })
}

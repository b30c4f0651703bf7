//! From the text to a [`Campaign`]: everything but `[[fault]]`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use super::reader::{self, Problem, Table, Text, Value};
use super::{
    Campaign, Channel, Interval, Layout, Limits, MAX_DRAWS, MAX_FAULTS, MAX_REPLICAS, Mask, Mode,
    Oracle, Sectors, Trials, Workload, parse_fault,
};
use crate::model::Outcome;

/// Longest name of a campaign or fault.
const MAX_NAME: usize = 63;
/// Longest list of anything (R10).
const MAX_ITEMS: usize = 1000;
/// Longest time of any limit: a day, ms.
const MAX_MILLIS: u64 = 86_400_000;

/// Keys of each table, for the messages and for the test that the documentation has them all.
pub(super) const TOP: &[&str] = &[
    "name",
    "description",
    "appliance",
    "seed",
    "replicas",
    "layout",
    "workload",
    "oracle",
    "trials",
    "limits",
    "fault",
];
pub(super) const WORKLOAD: &[&str] = &["warmup", "command", "conversation", "timeout_s", "mode"];
pub(super) const ORACLE: &[&str] = &["compare", "mask", "errors", "ignore_sectors"];
pub(super) const MASK: &[&str] = &["where", "pattern", "replace"];
pub(super) const SECTORS: &[&str] = &["disk", "first", "last"];
pub(super) const TRIALS: &[&str] = &[
    "count",
    "half_width",
    "confidence",
    "max",
    "interval",
    "batch",
    "watch",
];
pub(super) const LIMITS: &[&str] = &["hang_ms", "cpu_ms", "lag_ms", "boundaries"];

pub(super) fn campaign(text: &str, path: &Path) -> Result<Campaign, Problem> {
    let document = reader::document(text)?;
    let top = whole(text, &document);
    top.only(TOP)?;
    let name = match top.get("name") {
        Some(value) => name(&value)?,
        None => path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .filter(|stem| is_name(stem))
            .unwrap_or_else(|| "campaign".to_owned()),
    };
    Ok(Campaign {
        description: match top.get("description") {
            Some(value) => value.text()?.to_owned(),
            None => String::new(),
        },
        appliance: file(&top.need("appliance", "appliance = \"redis.toml\"")?)?,
        seed: match top.get("seed") {
            Some(value) => value.words()?,
            None => "1".to_owned(),
        },
        replicas: match top.get("replicas") {
            Some(value) => replicas(&value)?,
            None => vec![1, 3],
        },
        layout: match top.get("layout") {
            Some(value) => {
                Some(value.one_of(&[("random", Layout::Random), ("same", Layout::Same)])?)
            }
            None => None,
        },
        workload: workload(&top)?,
        oracle: oracle(&top)?,
        trials: trials(&top)?,
        limits: limits(&top)?,
        faults: faults(&top)?,
        path: path.to_owned(),
        name,
    })
}

fn whole<'t>(text: &'t str, document: &'t Spanned<DeTable<'t>>) -> Table<'t> {
    let mut top = Table::new(Text(text), document, "at the top level");
    top.line = 1;
    top
}

/// Looks whether the files that a campaign names are there and can be read.
pub(super) fn check_files(campaign: &Campaign, text: &str) -> Result<(), Problem> {
    let document = reader::document(text)?;
    let top = whole(text, &document);
    let appliance = campaign.appliance_path();
    if let Err(error) = quorate_images::Appliance::load(&appliance) {
        return Err(top.problem_at("appliance", error));
    }
    if let Some(value) = top.get("workload") {
        let table = value.table("in [workload]")?;
        if let Some(path) = &campaign.workload.conversation {
            let path = campaign.resolve(path);
            if !path.is_file() {
                return Err(
                    table.problem_at("conversation", format!("{}: no such file", path.display()))
                );
            }
        }
        let commands = [
            ("warmup", &campaign.workload.warmup),
            ("command", &campaign.workload.command),
        ];
        for (key, command) in commands {
            let Some(word) = command.as_ref().and_then(|words| words.first()) else {
                continue;
            };
            let program = campaign.program(word);
            let found = if program.components().count() > 1 {
                program.is_file()
            } else {
                in_path(&program)
            };
            if !found {
                return Err(table.problem_at(
                    key,
                    format!("program \"{word}\" is neither beside the campaign file nor in PATH"),
                ));
            }
        }
    }
    Ok(())
}

fn in_path(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(inner)
}

pub(super) fn name(value: &Value<'_, '_>) -> Result<String, Problem> {
    let text = value.text()?;
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(value.problem(format!(
            "\"{text}\" is not a name: use 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, a letter or digit first"
        )))
    }
}

fn file(value: &Value<'_, '_>) -> Result<PathBuf, Problem> {
    value.words().map(PathBuf::from)
}

fn replicas(value: &Value<'_, '_>) -> Result<Vec<u8>, Problem> {
    let mut sizes = Vec::new();
    for item in value.one_or_list()? {
        let size = u8_of(&item, 1, MAX_REPLICAS)?;
        if sizes.contains(&size) {
            return Err(item.problem(format!("{size} is there twice")));
        }
        sizes.push(size);
    }
    Ok(sizes)
}

pub(super) fn u8_of(value: &Value<'_, '_>, least: u8, most: u8) -> Result<u8, Problem> {
    let number = value.integer(u64::from(least)..=u64::from(most))?;
    u8::try_from(number).map_err(|_| value.problem(format!("{number} is not possible")))
}

fn optional_table<'t>(top: &Table<'t>, key: &str) -> Result<Option<Table<'t>>, Problem> {
    match top.get(key) {
        Some(value) => value.table(&format!("in [{key}]")).map(Some),
        None => Ok(None),
    }
}

fn command(value: &Value<'_, '_>) -> Result<Vec<String>, Problem> {
    if value.is_text() {
        let text = value.text()?;
        return Err(value.problem(format!(
            "this is text, not a list of words: write `[\"{}\"]`",
            text.split_whitespace().collect::<Vec<_>>().join("\", \"")
        )));
    }
    let words = value.list()?;
    let mut command = Vec::new();
    for (number, word) in words.iter().enumerate() {
        let text = word.text()?;
        if text.contains('\0') || (number == 0 && text.is_empty()) {
            return Err(word.problem("is empty or has a NUL character"));
        }
        command.push(text.to_owned());
    }
    Ok(command)
}

fn workload(top: &Table<'_>) -> Result<Workload, Problem> {
    let mut workload = Workload {
        warmup: None,
        command: None,
        conversation: None,
        timeout_s: 60,
        mode: Mode::default(),
    };
    let Some(table) = optional_table(top, "workload")? else {
        return Ok(workload);
    };
    table.only(WORKLOAD)?;
    if let Some(value) = table.get("warmup") {
        workload.warmup = Some(command(&value)?);
    }
    if let Some(value) = table.get("command") {
        workload.command = Some(command(&value)?);
    }
    if let Some(value) = table.get("conversation") {
        workload.conversation = Some(file(&value)?);
    }
    if let Some(value) = table.get("timeout_s") {
        workload.timeout_s = value.integer(1..=86_400)?;
    }
    if let Some(value) = table.get("mode") {
        workload.mode = value.one_of(&[("staged", Mode::Staged), ("live", Mode::Live)])?;
        if workload.mode == Mode::Live && workload.command.is_none() {
            return Err(value.problem("\"live\" runs a client for each trial: give a `command`"));
        }
    }
    if workload.command.is_some() && workload.conversation.is_some() {
        return Err(table.problem_at(
            "conversation",
            "goes in place of `command`: give only one of the two",
        ));
    }
    if workload.warmup.is_some() && workload.command.is_none() && workload.conversation.is_none() {
        return Err(table.problem_at(
            "warmup",
            "goes with `command` or `conversation` only, and neither is there",
        ));
    }
    Ok(workload)
}

const CHANNELS: &[(&str, Channel)] = &[
    ("client", Channel::Client),
    ("disk", Channel::Disk),
    ("console", Channel::Console),
];

fn pattern(value: &Value<'_, '_>) -> Result<String, Problem> {
    let text = value.text()?;
    if text.is_empty() {
        return Err(value.problem("an empty pattern matches everywhere"));
    }
    match regex::bytes::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let lines = error.to_string();
            let why = lines.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error: ");
            Err(value.problem(format!("\"{text}\" is not a regular expression: {why}")))
        }
    }
}

fn limited<'s, 't>(value: &Value<'s, 't>) -> Result<Vec<Value<'s, 't>>, Problem> {
    let items = value.one_or_list()?;
    if items.len() > MAX_ITEMS {
        return Err(value.problem(format!(
            "{} items are too many: at most {MAX_ITEMS}",
            items.len()
        )));
    }
    Ok(items)
}

fn oracle(top: &Table<'_>) -> Result<Oracle, Problem> {
    let mut oracle = Oracle {
        compare: vec![Channel::Client, Channel::Disk, Channel::Console],
        masks: Vec::new(),
        errors: Vec::new(),
        ignore_sectors: Vec::new(),
    };
    let Some(table) = optional_table(top, "oracle")? else {
        return Ok(oracle);
    };
    table.only(ORACLE)?;
    if let Some(value) = table.get("compare") {
        let mut channels = BTreeSet::new();
        for item in limited(&value)? {
            channels.insert(item.one_of(CHANNELS)?);
        }
        oracle.compare = channels.into_iter().collect();
    }
    if let Some(value) = table.get("errors") {
        for item in limited(&value)? {
            oracle.errors.push(pattern(&item)?);
        }
    }
    if let Some(value) = table.get("mask") {
        for item in limited(&value)? {
            let mask = item.table("in [[oracle.mask]]")?;
            mask.only(MASK)?;
            let place = mask.need("where", "where = \"client\"")?;
            let channel = place.one_of(CHANNELS)?;
            if !oracle.compare.contains(&channel) {
                return Err(place.problem("that is not in `compare`, so the mask would do nothing"));
            }
            oracle.masks.push(Mask {
                channel,
                pattern: pattern(&mask.need("pattern", "pattern = '\\d+'")?)?,
                replace: match mask.get("replace") {
                    Some(value) => value.text()?.to_owned(),
                    None => String::new(),
                },
            });
        }
    }
    if let Some(value) = table.get("ignore_sectors") {
        for item in limited(&value)? {
            let range = item.table("in [[oracle.ignore_sectors]]")?;
            range.only(SECTORS)?;
            let most = (quorate_images::appliance::MAX_DISK / 512) - 1;
            let first = range.need("first", "first = 0")?.integer(0..=most)?;
            let last = range.need("last", "last = 7")?;
            oracle.ignore_sectors.push(Sectors {
                disk: match range.get("disk") {
                    Some(value) => Some(value.words()?),
                    None => None,
                },
                first,
                last: match last.integer(0..=most)? {
                    last if last >= first => last,
                    last => {
                        return Err(range
                            .problem_at("last", format!("{last} is less than `first`, {first}")));
                    }
                },
            });
        }
    }
    Ok(oracle)
}

fn trials(top: &Table<'_>) -> Result<Trials, Problem> {
    let mut trials = Trials {
        count: Some(1000),
        half_width: None,
        confidence: 0.95,
        max: 100_000,
        interval: Interval::default(),
        batch: 100,
        watch: Vec::new(),
    };
    let Some(table) = optional_table(top, "trials")? else {
        return Ok(trials);
    };
    table.only(TRIALS)?;
    if table.has("count") && table.has("half_width") {
        return Err(table.problem_at(
            "half_width",
            "decides how many trials there are, as `count` does: give only one of the two",
        ));
    }
    if let Some(value) = table.get("count") {
        trials.count = Some(value.integer(1..=MAX_DRAWS)?);
    }
    if let Some(value) = table.get("half_width") {
        let width = value.number()?;
        if !(width > 0.0 && width < 0.5) {
            return Err(value.problem(format!(
                "{width} is not possible: above 0 and below 0.5, such as 0.01 for one per cent either way"
            )));
        }
        trials.half_width = Some(width);
        trials.count = None;
    }
    if let Some(value) = table.get("confidence") {
        let confidence = value.number()?;
        if !(0.5..1.0).contains(&confidence) {
            return Err(value.problem(format!(
                "{confidence} is not possible: from 0.5 to below 1, such as 0.95"
            )));
        }
        trials.confidence = confidence;
    }
    for key in ["max", "watch"] {
        if table.has(key) && trials.half_width.is_none() {
            return Err(table.problem_at(key, "goes with `half_width` only"));
        }
    }
    if let Some(value) = table.get("max") {
        trials.max = value.integer(1..=MAX_DRAWS)?;
    }
    if let Some(value) = table.get("interval") {
        trials.interval = value.one_of(&[
            ("clopper-pearson", Interval::ClopperPearson),
            ("wilson", Interval::Wilson),
        ])?;
    }
    if let Some(value) = table.get("batch") {
        trials.batch = value.integer(1..=1_000_000)?;
    }
    if let Some(value) = table.get("watch") {
        let outcomes = Outcome::ALL.map(|outcome| (outcome.name(), outcome));
        for item in limited(&value)? {
            trials.watch.push(item.one_of(&outcomes)?);
        }
    }
    Ok(trials)
}

fn limits(top: &Table<'_>) -> Result<Limits, Problem> {
    let mut limits = Limits {
        hang_ms: 5000,
        cpu_ms: 400,
        lag_ms: 500,
        boundaries: 2_000_000,
    };
    let Some(table) = optional_table(top, "limits")? else {
        return Ok(limits);
    };
    table.only(LIMITS)?;
    if let Some(value) = table.get("hang_ms") {
        limits.hang_ms = value.integer(1..=MAX_MILLIS)?;
    }
    if let Some(value) = table.get("cpu_ms") {
        limits.cpu_ms = value.integer(1..=MAX_MILLIS)?;
    }
    if let Some(value) = table.get("lag_ms") {
        limits.lag_ms = value.integer(1..=MAX_MILLIS)?;
    }
    if let Some(value) = table.get("boundaries") {
        limits.boundaries = value.integer(1..=u64::from(u32::MAX))?;
    }
    Ok(limits)
}

fn faults(top: &Table<'_>) -> Result<Vec<super::FaultSpec>, Problem> {
    let sections = match top.get("fault") {
        Some(value) if value.is_list() => value.list()?,
        Some(value) => {
            return Err(value.problem("write `[[fault]]` with two brackets: there can be several"));
        }
        None => {
            return Err((
                1,
                "no [[fault]]: write at least one, such as `[[fault]]` with `model = \"register\"`"
                    .to_owned(),
            ));
        }
    };
    if sections.len() > MAX_FAULTS {
        return Err(top.problem(format!("more than {MAX_FAULTS} [[fault]] sections")));
    }
    let mut faults: Vec<super::FaultSpec> = Vec::new();
    for (number, section) in sections.iter().enumerate() {
        let table = section.table(&format!("in [[fault]] number {}", number + 1))?;
        let line = table.line;
        let fault = parse_fault::fault(table)?;
        if faults.iter().any(|other| other.name == fault.name) {
            let problem = format!(
                "there are two [[fault]] called \"{0}\": give one of them another name, such as `name = \"{0}-2\"`",
                fault.name
            );
            return Err((line, problem));
        }
        faults.push(fault);
    }
    Ok(faults)
}

//! From the keys of a `[[fault]]` that say when it comes to a [`When`].

use super::fault::{Distribution, Point, Span, When};
use super::parse_fault::{Kind, TRIGGER, span};
use super::reader::{Problem, Table, Value, listed};

/// What a trigger's numbers count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Boundaries,
    Milliseconds,
    Calls,
    Instructions,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Scale(Unit),
    Symbol,
}

pub(super) fn when(table: &Table<'_>, kind: Kind) -> Result<When, Problem> {
    let words = match table.get("when") {
        Some(value) => value.one_of(&[
            ("boundary", Words::Scale(Unit::Boundaries)),
            ("time", Words::Scale(Unit::Milliseconds)),
            ("syscall", Words::Scale(Unit::Calls)),
            ("instruction", Words::Scale(Unit::Instructions)),
            ("symbol", Words::Symbol),
        ])?,
        None if table.has("symbol") => Words::Symbol,
        None if kind == Kind::Syscall => Words::Scale(Unit::Calls),
        None => Words::Scale(Unit::Boundaries),
    };
    let stray = |keys: &[&str], of: &str| {
        let key = keys.iter().find(|key| table.has(key))?;
        Some(table.problem_at(key, of))
    };
    match words {
        Words::Symbol => {
            let spread: Vec<&str> = TRIGGER
                .iter()
                .filter(|key| !matches!(**key, "symbol" | "hit"))
                .copied()
                .collect();
            if let Some(problem) = stray(
                &spread,
                "does not go with when = \"symbol\"; its own keys: \"symbol\" and \"hit\"",
            ) {
                return Err(problem);
            }
            let mut symbols = Vec::new();
            for item in table.need("symbol", "symbol = \"main\"")?.one_or_list()? {
                symbols.push(item.words()?);
            }
            Ok(When::Symbol {
                symbols,
                hit: span(table, "hit", Span::only(1), 1, 1_000_000_000)?,
            })
        }
        Words::Scale(unit) => {
            if let Some(problem) = stray(&["symbol", "hit"], "goes with when = \"symbol\" only") {
                return Err(problem);
            }
            let distribution = distribution(table, unit)?;
            Ok(match unit {
                Unit::Boundaries => When::Boundary { distribution },
                Unit::Milliseconds => When::Time { distribution },
                Unit::Calls => When::Syscall { distribution },
                Unit::Instructions => When::Instruction { distribution },
            })
        }
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Uniform,
    Normal,
    Exponential,
    Burst,
}

/// Each distribution with its keys.
const SHAPES: &[(&str, Shape, &[&str])] = &[
    ("uniform", Shape::Uniform, &["from", "to"]),
    ("normal", Shape::Normal, &["mean", "deviation"]),
    ("exponential", Shape::Exponential, &["mean"]),
    ("burst", Shape::Burst, &["centres", "width"]),
];

fn distribution(table: &Table<'_>, unit: Unit) -> Result<Distribution, Problem> {
    let whole = (Point::Share(0), Point::Share(Point::WHOLE));
    if let Some(value) = table.get("at") {
        let spread: Vec<&str> = TRIGGER
            .iter()
            .filter(|key| !matches!(**key, "at" | "symbol" | "hit"))
            .copied()
            .collect();
        if let Some(key) = spread.iter().find(|key| table.has(key)) {
            return Err(table.problem_at(key, "does not go with `at`, which is certain"));
        }
        if !value.is_list() {
            return Ok(Distribution::Fixed {
                at: point(&value, unit)?,
            });
        }
        let items = value.list()?;
        let [from, to] = items.as_slice() else {
            return Err(value.problem("write a number, or a range as [first, last]"));
        };
        return uniform(&value, point(from, unit)?, point(to, unit)?);
    }
    let words: Vec<(&'static str, Shape)> = SHAPES
        .iter()
        .map(|(word, shape, _)| (*word, *shape))
        .collect();
    let (shape, word) = match table.get("distribution") {
        Some(value) => (value.one_of(&words)?, value.text()?),
        None => (Shape::Uniform, "uniform"),
    };
    let own = SHAPES
        .iter()
        .find(|(known, _, _)| *known == word)
        .map_or(&[][..], |(_, _, own)| *own);
    for (_, _, keys) in SHAPES {
        for key in *keys {
            if table.has(key) && !own.contains(key) {
                return Err(table.problem_at(
                    key,
                    format!(
                        "does not go with distribution \"{word}\"; its own keys: {}",
                        listed(own, "and")
                    ),
                ));
            }
        }
    }
    let maybe = |key: &str, default: Point| match table.get(key) {
        Some(value) => point(&value, unit),
        None => Ok(default),
    };
    // A length is above zero.
    let length = |key: &str, example: &str| {
        let value = table.need(key, example)?;
        match length_of(&value, unit)? {
            Point::Number(0) => Err(value.problem("0 is not possible: it is a length")),
            Point::Share(0) => Err(value.problem("0% is not possible: it is a length")),
            length => Ok(length),
        }
    };
    match shape {
        Shape::Uniform => {
            let key = if table.has("to") { "to" } else { "from" };
            let (from, to) = (maybe("from", whole.0)?, maybe("to", whole.1)?);
            match table.get(key) {
                Some(value) => uniform(&value, from, to),
                None => Ok(Distribution::Uniform { from, to }),
            }
        }
        Shape::Normal => Ok(Distribution::Normal {
            mean: maybe("mean", Point::Share(Point::WHOLE / 2))?,
            deviation: length("deviation", "deviation = \"10%\"")?,
        }),
        Shape::Exponential => Ok(Distribution::Exponential {
            mean: length("mean", "mean = \"20%\"")?,
        }),
        Shape::Burst => {
            let mut centres = Vec::new();
            for item in table
                .need("centres", "centres = [\"25%\", \"75%\"]")?
                .one_or_list()?
            {
                centres.push(point(&item, unit)?);
            }
            Ok(Distribution::Burst {
                centres,
                width: length("width", "width = \"5%\"")?,
            })
        }
    }
}

fn uniform(value: &Value<'_, '_>, from: Point, to: Point) -> Result<Distribution, Problem> {
    let empty = match (from, to) {
        (Point::Number(from), Point::Number(to)) => from > to,
        (Point::Share(from), Point::Share(to)) => from >= to,
        _ => false,
    };
    if empty {
        return Err(value.problem(format!("there is nothing from {from} to {to}")));
    }
    Ok(Distribution::Uniform { from, to })
}

/// A point that counts from the trial's beginning; boundaries and calls count from 1.
fn point(value: &Value<'_, '_>, unit: Unit) -> Result<Point, Problem> {
    let point = length_of(value, unit)?;
    if point == Point::Number(0) && matches!(unit, Unit::Boundaries | Unit::Calls) {
        return Err(value.problem("0 is not possible: boundaries and system calls count from 1"));
    }
    Ok(point)
}

fn length_of(value: &Value<'_, '_>, unit: Unit) -> Result<Point, Problem> {
    if value.is_text() {
        let text = value.text()?;
        let share = text
            .strip_suffix('%')
            .and_then(|number| number.trim().parse::<f64>().ok())
            .filter(|percent| (0.0..=100.0).contains(percent));
        // At most 1e9.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let billionths = |percent: f64| (percent * 1e7).round() as u32;
        return share.map(|percent| Point::Share(billionths(percent))).ok_or_else(|| {
            value.problem(format!(
                "\"{text}\" is not a share of the trial: write \"0%\" to \"100%\", or a number without quotes"
            ))
        });
    }
    if unit == Unit::Milliseconds {
        let millis = value.number()?;
        if !(0.0..=1e9).contains(&millis) {
            return Err(value.problem(format!("{millis} is not possible: 0 to 1000000000 ms")));
        }
        // At most 1e15, which both types hold exactly.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let nanoseconds = (millis * 1e6).round() as u64;
        return Ok(Point::Number(nanoseconds));
    }
    value
        .integer(0..=i64::MAX.unsigned_abs())
        .map(Point::Number)
}

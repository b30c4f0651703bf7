//! A report for people.

use std::fmt;

use super::{Group, Report};

pub(super) fn write(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.differences == 0 && report.unreadable == 0 {
        return writeln!(f, "no answer differed");
    }
    let many = |count: u64, one: &str, several: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {several}"),
    };
    writeln!(
        f,
        "{}, of {}",
        many(report.differences, "answer differed", "answers differed"),
        many(report.groups.len() as u64, "sort", "sorts")
    )?;
    let mut last = None;
    for group in &report.groups {
        let place = (group.replica, group.port);
        if last != Some(place) {
            writeln!(f, "\n{}", heading(group))?;
            last = Some(place);
        }
        one(f, group, &many)?;
    }
    if report.ungrouped > 0 {
        writeln!(f, "\n{} more of other sorts", report.ungrouped)?;
    }
    if report.unreadable > 0 {
        let lines = many(report.unreadable, "line", "lines");
        writeln!(
            f,
            "\n{lines} could not be read: no lines of `quorate run --differences`, or cut off"
        )?;
    }
    Ok(())
}

fn heading(group: &Group) -> String {
    let replica = match group.version.as_str() {
        "" => format!("replica {}", group.replica),
        version => format!("replica {} ({version})", group.replica),
    };
    match group.port {
        0 => format!("{replica}, console"),
        port => format!("{replica}, port {port}"),
    }
}

fn one(
    f: &mut fmt::Formatter<'_>,
    group: &Group,
    many: &dyn Fn(u64, &str, &str) -> String,
) -> fmt::Result {
    let first = &group.first;
    let connections = many(group.connections, "connection", "connections");
    writeln!(
        f,
        "  {}: {}, {} on {connections}",
        group.command,
        group.class,
        many(group.count, "time", "times")
    )?;
    let (seconds, millis) = (first.at_ms / 1000, first.at_ms % 1000);
    writeln!(
        f,
        "    first after {seconds}.{millis:03} s, on connection {}, byte {}",
        first.connection, first.position
    )?;
    if let Some(request) = &first.request {
        writeln!(f, "      asked     \"{request}\"")?;
    }
    if !first.released.is_empty() || !first.said.is_empty() {
        writeln!(f, "      released  \"{}\"", first.released)?;
        writeln!(f, "      it said   \"{}\"", first.said)?;
    }
    Ok(())
}

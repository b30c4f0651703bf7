//! What passes between clients and replicas through the matchers, by channel.

use std::sync::Arc;
use std::time::Instant;

use quorate_voter::relaxed::{
    DIFFERENCE_EXCERPT_BYTES, DatagramMatcher, Departure, Difference, EndOfStream, Policy, Role,
    StreamMatcher,
};

use super::hub::{CONNECTION_INPUT, Channel, Hub, Inner, id};
use super::link::{ConnId, FlowId, ToGuest};
use crate::console::CONSOLE_TAIL;
use crate::events::Event;

impl Hub {
    // What the front says.

    /// A client has connected: the event of it goes to all.
    pub(super) fn open(&self, inner: &mut Inner, conn: ConnId, guest_port: u16) {
        let settings = &self.settings;
        let mask = settings.masks.get(&guest_port);
        let matcher = StreamMatcher::new(&settings.voters, settings.limits, mask);
        let mut matcher = matcher.for_connection(conn);
        for (me, member) in inner.members.iter().enumerate() {
            if !member.alive {
                matcher.leave(id(me));
            }
        }
        let channel = Channel {
            masked: mask.is_some(),
            matcher,
            guest_port,
            sync: settings.sync.contains(&guest_port),
            input: 0,
            last_input: inner.log.events(),
            owed: vec![0; inner.members.len()],
            throttled: false,
            queued: false,
            full: Vec::new(),
            waits_since: None,
            owed_since: vec![None; inner.members.len()],
            undecided: false,
            over: false,
            broken: false,
        };
        inner.channels.insert(conn, channel);
        inner.log.push(ToGuest::Open { conn, guest_port }, 0);
    }

    /// The client sent bytes.
    pub(super) fn data(&self, inner: &mut Inner, conn: ConnId, bytes: &[u8]) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        channel.matcher.note_input(channel.input, bytes);
        channel.input += bytes.len() as u64;
        for (owed, member) in channel.owed.iter_mut().zip(&inner.members) {
            if member.alive {
                *owed += bytes.len() as u64;
            }
        }
        let after = channel.matcher.released();
        let answered = self.is_answered(inner, conn);
        let bytes = bytes.into();
        let what = ToGuest::Data { conn, bytes };
        let number = inner.log.push_answered(what, after, answered);
        if let Some(channel) = inner.channels.get_mut(&conn) {
            channel.last_input = number;
        }
    }

    /// Whether what is released on a connection is the whole answer to all that the client has sent: those whose word counts are idle
    /// since they were given it, and have said that and no more.
    fn is_answered(&self, inner: &Inner, conn: ConnId) -> bool {
        let Some(channel) = inner.channels.get(&conn) else {
            return false;
        };
        let (matcher, voters) = (&channel.matcher, &self.settings.voters);
        let answered = |me: usize| {
            let replica = id(me);
            let member = inner.members.get(me);
            member.is_some_and(|member| member.alive && member.answered > channel.last_input)
                && matcher.takes_part(replica)
                && matcher.position(replica) == matcher.released()
                && matcher.held_back(replica) == 0
        };
        match voters.policy() {
            Policy::Primary { replica } if matcher.takes_part(replica) => {
                answered(usize::from(replica.0))
            }
            _ => {
                let counts = |me: &usize| voters.role(id(*me)) != Some(Role::Canary);
                let all = (0..inner.members.len()).filter(counts);
                all.filter(|me| answered(*me)).count() >= voters.quorum()
            }
        }
    }

    /// A client sent a datagram.
    pub(super) fn datagram(&self, inner: &mut Inner, flow: FlowId, guest_port: u16, bytes: &[u8]) {
        inner.flows.insert(flow, guest_port);
        if !inner.datagrams.contains_key(&guest_port) {
            let settings = &self.settings;
            let mask = settings.udp_masks.get(&guest_port);
            let mut matcher = DatagramMatcher::new(&settings.voters, settings.pool(), mask);
            for (me, member) in inner.members.iter().enumerate() {
                if !member.alive {
                    matcher.leave(id(me));
                }
            }
            inner.datagrams.insert(guest_port, matcher);
        }
        inner.log.push(
            ToGuest::Datagram {
                flow,
                guest_port,
                bytes: bytes.into(),
            },
            0,
        );
    }

    /// The front has forgotten a client.
    pub(super) fn forget_flow(&self, inner: &mut Inner, flow: FlowId) {
        inner.flows.remove(&flow);
    }

    /// Takes released datagrams.
    pub(super) fn take_datagrams(&self, inner: &mut Inner, into: &mut Vec<(FlowId, Arc<[u8]>)>) {
        if !std::mem::take(&mut inner.datagrams_wait) {
            return;
        }
        for matcher in inner.datagrams.values_mut() {
            while let Some(datagram) = matcher.take_released() {
                inner.released_bytes += datagram.bytes.len() as u64;
                inner.releases += 1;
                into.push((datagram.flow, datagram.bytes));
            }
        }
    }

    /// A replica says a datagram.
    pub(super) fn datagram_said(&self, inner: &mut Inner, me: usize, flow: FlowId, bytes: &[u8]) {
        let Some(port) = inner.flows.get(&flow).copied() else {
            return;
        };
        let now = inner.fair.at(Instant::now());
        let Some(matcher) = inner.datagrams.get_mut(&port) else {
            return;
        };
        // Datagrams may get lost: one that has no room is.
        if matcher
            .push(id(me), flow, bytes, now)
            .is_ok_and(|pushed| pushed.news)
        {
            self.datagram_news(inner, port);
        }
    }

    pub(super) fn datagram_news(&self, inner: &mut Inner, port: u16) {
        let Some(matcher) = inner.datagrams.get_mut(&port) else {
            return;
        };
        let differences = matcher.differences();
        inner.datagrams_wait = true;
        for difference in differences {
            let who = inner.members.get(usize::from(difference.replica.0));
            // A network that is not up yet loses datagrams, as any network may.
            if !who.is_some_and(|member| self.boots(member)) {
                self.differs(inner, port, &difference);
            }
        }
        self.wake_front();
    }

    /// A replica's console goes on.
    pub(super) fn console_said(&self, inner: &mut Inner, me: usize, text: &[u8]) {
        if let Some(member) = inner.members.get_mut(me) {
            member.console.extend_from_slice(text);
            let over = member.console.len().saturating_sub(CONSOLE_TAIL);
            member.console.drain(..over);
        }
        let now = inner.fair.at(Instant::now());
        let taken = inner.lines.push(id(me), text, now).unwrap_or(0);
        inner.console_lost += (text.len() - taken) as u64;
        self.console_news(inner);
    }

    pub(super) fn console_news(&self, inner: &mut Inner) {
        let mut lines = Vec::new();
        inner.lines.take_released(&mut lines);
        if !lines.is_empty() {
            self.console.put(&lines);
        }
        // Lines with a time or a process number differ all the time: that is no verdict on who says them. A mask names what may differ.
        for difference in inner.lines.differences() {
            if difference.kind == Departure::Spurious {
                self.own_line(inner, &difference);
            }
        }
    }

    /// A line that no quorum has said, and that none will say any more.
    fn own_line(&self, inner: &mut Inner, difference: &Difference) {
        let me = usize::from(difference.replica.0);
        let first = inner.members.iter().all(|member| member.own_lines == 0);
        if let Some(member) = inner.members.get_mut(me) {
            member.own_lines += 1;
        }
        let name = match self.settings.names.get(me).map(String::as_str) {
            None | Some("") => format!("replica {me}"),
            Some(name) => format!("replica {me}, {name}"),
        };
        let text = String::from_utf8_lossy(&difference.said);
        let text = text.trim_end_matches(['\r', '\n']);
        let cut = match difference.said.len() < DIFFERENCE_EXCERPT_BYTES {
            true => "",
            false => " ...",
        };
        if self.settings.console_all {
            self.console
                .put(format!("[{name}] {text}{cut}\n").as_bytes());
        } else if first {
            self.note(format!(
                "lines of the console that too few replicas said alike are not shown, the first of them by {name}: \"{text}{cut}\"; console = \"all\" in [relaxed] shows them"
            ));
        }
    }

    /// The set is over: nobody will say anything any more.
    pub(super) fn console_over(&self) {
        let inner = &mut *self.lock();
        let now = inner.fair.at(Instant::now());
        for me in 0..inner.members.len() {
            // What has no room is not shown.
            let _ = inner.lines.flush(id(me), now);
        }
        inner.lines.tick(u64::MAX);
        self.console_news(inner);
    }

    /// Somebody types at the consoles. False: there is no room for it now.
    pub(super) fn type_in(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let mut inner = self.lock();
        if !self.log_has_room(&inner) {
            return false;
        }
        let bytes = bytes.into();
        inner.log.push(ToGuest::Typed { bytes }, 0);
        drop(inner);
        self.ring_all();
        true
    }

    /// The client sends no more.
    pub(super) fn shut(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get(&conn) {
            let after = channel.matcher.released();
            inner.log.push(ToGuest::Shut { conn }, after);
        }
    }

    /// The client has gone: nothing that a guest says there matters any more.
    pub(super) fn reset(&self, inner: &mut Inner, conn: ConnId) {
        if inner.channels.remove(&conn).is_some() {
            inner.log.push(ToGuest::Reset { conn }, 0);
        }
    }

    /// The guests broke the connection off, and the client was told. Guests that have only ended it learn that it is over when all have
    /// said what there was to say: a slow one would lose what it has yet to say.
    pub(super) fn broken_by_guest(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get_mut(&conn) {
            channel.broken = true;
        }
        self.close(inner, conn);
    }

    /// Both sides have ended and the client has everything.
    pub(super) fn close(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get_mut(&conn) {
            channel.over = true;
        }
        self.forget_if_done(inner, conn);
    }

    /// Whether a client's socket may be read. If not, the connection comes to the front's list when it may.
    pub(super) fn may_read(&self, inner: &mut Inner, conn: ConnId) -> bool {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return true;
        };
        let owed = channel.owed.iter().max().copied().unwrap_or(0);
        channel.throttled = owed >= CONNECTION_INPUT;
        !channel.throttled
    }

    /// Whether the log has room for more input.
    pub(super) fn log_has_room(&self, inner: &Inner) -> bool {
        inner.log.unread_cost() < self.settings.log_bytes
    }

    /// Takes what was released; replicas that had no room have it now.
    pub(super) fn take(
        &self,
        inner: &mut Inner,
        conn: ConnId,
        into: &mut Vec<u8>,
    ) -> Option<EndOfStream> {
        let channel = inner.channels.get_mut(&conn)?;
        let before = into.len();
        let end = channel.matcher.take_released(into);
        let took = into.len() - before;
        // A client may send what it gets here at once, on any connection.
        for translation in channel.matcher.translations() {
            inner.translator.learn(translation);
        }
        inner.released_bytes += took as u64;
        inner.releases += u64::from(took > 0);
        if took > 0 {
            for me in std::mem::take(&mut channel.full) {
                if let Some(member) = inner.members.get_mut(me) {
                    member.retry.push(conn);
                }
                if let Some(bell) = self.bells.get(me) {
                    bell.ring();
                }
            }
        }
        end
    }

    /// Takes the front's list.
    pub(super) fn take_dirty(&self, inner: &mut Inner, into: &mut Vec<ConnId>) {
        into.append(&mut inner.dirty);
        for conn in into.iter() {
            if let Some(channel) = inner.channels.get_mut(conn) {
                channel.queued = false;
            }
        }
    }

    // What replicas say.

    /// A replica's stream goes on. How many bytes were taken; the rest is to be offered again when its connection is among
    /// [`Member::retry`].
    pub(super) fn push(&self, inner: &mut Inner, me: usize, conn: ConnId, bytes: &[u8]) -> usize {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            // Nobody is there to hear it.
            return bytes.len();
        };
        let (taken, news) = match channel.matcher.push(id(me), bytes) {
            Ok(taken) => (taken.bytes, taken.news),
            Err(_) => (0, false),
        };
        if taken < bytes.len() && !channel.full.contains(&me) {
            channel.full.push(me);
        }
        if channel.masked
            && channel.matcher.held_back(id(me)) > 0
            && let Some(member) = inner.members.get_mut(me)
        {
            member.held.insert(conn, member.exchanges);
        }
        if news {
            self.news(inner, conn);
        } else {
            // Nothing new to anybody, but it may be the last that was waited for.
            self.forget_if_done(inner, conn);
        }
        taken
    }

    /// The replica has said nothing for a while: what masks hold back, because it has no end, passes as it is. True if anything was.
    pub(super) fn flush_held(&self, inner: &mut Inner, me: usize) -> bool {
        let held = match inner.members.get_mut(me) {
            Some(member) if !member.held.is_empty() => std::mem::take(&mut member.held),
            _ => return false,
        };
        for conn in held.into_keys() {
            let channel = inner.channels.get_mut(&conn);
            if channel.is_some_and(|channel| channel.matcher.flush(id(me))) {
                self.news(inner, conn);
            }
        }
        true
    }

    /// A replica's stream ends.
    pub(super) fn push_end(&self, inner: &mut Inner, me: usize, conn: ConnId, how: EndOfStream) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        if channel.matcher.end(id(me), how) {
            self.news(inner, conn);
        } else {
            self.forget_if_done(inner, conn);
        }
    }

    /// A replica's guest has acknowledged so many client bytes.
    pub(super) fn acknowledged(&self, inner: &mut Inner, me: usize, conn: ConnId, bytes: u64) {
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        if let Some(owed) = channel.owed.get_mut(me) {
            *owed = owed.saturating_sub(bytes);
        }
        if channel.throttled
            && channel
                .owed
                .iter()
                .all(|owed| *owed <= CONNECTION_INPUT / 2)
        {
            channel.throttled = false;
            self.queue(inner, conn);
        }
    }

    fn queue(&self, inner: &mut Inner, conn: ConnId) {
        if let Some(channel) = inner.channels.get_mut(&conn)
            && !std::mem::replace(&mut channel.queued, true)
        {
            if inner.dirty.is_empty() {
                self.wake_front();
            }
            inner.dirty.push(conn);
        }
    }

    /// A matcher has something new: for the front, and for the report.
    pub(super) fn news(&self, inner: &mut Inner, conn: ConnId) {
        self.queue(inner, conn);
        let Some(channel) = inner.channels.get_mut(&conn) else {
            return;
        };
        let differences = channel.matcher.differences();
        for translation in channel.matcher.translations() {
            inner.translator.learn(translation);
        }
        let port = channel.guest_port;
        for difference in differences {
            self.differs(inner, port, &difference);
        }
        self.forget_if_done(inner, conn);
    }

    fn differs(&self, inner: &mut Inner, port: u16, difference: &Difference) {
        let settings = &self.settings;
        let me = usize::from(difference.replica.0);
        let name = settings.names.get(me).map_or("", String::as_str);
        if inner.stop_deadline.is_some() && difference.kind == Departure::EndedEarly {
            // The programs were asked to end, and do so each in its own time.
            return;
        }
        let first = inner
            .report
            .add(self.clock.elapsed(), port, name, difference);
        let role = settings.voters.role(difference.replica);
        let stops = settings.stop_who_differs
            && role != Some(Role::Canary)
            && settings.voters.len() > 1
            && inner.members.get(me).is_some_and(|member| member.alive);
        if first || stops {
            self.tell(Event::Outvoted {
                replica: me,
                boundary: inner.members.get(me).map_or(0, |m| m.exchanges),
                channel: "network",
                detail: difference.to_string(),
            });
        }
        if stops {
            self.stop_replica(
                inner,
                me,
                "its output differs from what was released".to_owned(),
                false,
            );
            if let Some(member) = inner.members.get_mut(me) {
                // A dying program's connections are closed before anybody hears of its end, and a newer version may answer
                // otherwise each time: an input may be what did it, so that one is looked for if replaying is no help.
                member.recovery.crashed = true;
            }
        }
    }

    /// Forgets a connection that is over when everybody has said what there was to say.
    pub(super) fn forget_if_done(&self, inner: &mut Inner, conn: ConnId) {
        let Some(channel) = inner.channels.get(&conn).filter(|channel| channel.over) else {
            return;
        };
        let matcher = &channel.matcher;
        let done = (0..inner.members.len())
            .all(|me| !matcher.takes_part(id(me)) || matcher.behind(id(me)) == 0);
        if done
            && let Some(channel) = inner.channels.remove(&conn)
            && channel.broken
        {
            inner.log.push(ToGuest::Reset { conn }, 0);
            self.ring_all();
        }
    }
}

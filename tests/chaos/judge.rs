//! What must never be: acknowledged rows that are gone, rows that only a standby has, and two nodes that take writes at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use howdah::types::Moment;

/// One acknowledged row.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) id: u64,
    /// As the server itself says.
    pub(crate) node: Arc<str>,
    pub(crate) timeline: u32,
    pub(crate) sent: Moment,
    /// When the server had inserted the row and not yet committed it, by the clock that all containers share.
    pub(crate) executed: Moment,
    pub(crate) acknowledged: Moment,
}

/// The rows that a server has, as ranges of ids in order.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<(u64, u64)>);

impl Rows {
    /// Asks a server for its ranges.
    pub(crate) const QUERY: &'static str = "select min(id) || ' ' || max(id) from \
        (select id, id - row_number() over (order by id) as gap from chaos) as s group by gap order by min(id)";

    pub(crate) fn read(answer: &str) -> Rows {
        let range = |line: &str| {
            let (low, high) = line.split_once(' ')?;
            Some((low.parse().ok()?, high.parse().ok()?))
        };
        Rows(answer.lines().map(|line| range(line).unwrap()).collect())
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        let after = self.0.partition_point(|(low, _)| *low <= id);
        after > 0 && self.0[after - 1].1 >= id
    }

    /// Ids that the other one does not have.
    pub(crate) fn beyond(&self, other: &Rows) -> Vec<u64> {
        self.0
            .iter()
            .flat_map(|(low, high)| *low..=*high)
            .filter(|id| !other.has(*id))
            .collect()
    }
}

/// Acknowledged rows that a server does not have.
pub(crate) fn missing<'a>(acks: impl Iterator<Item = &'a Ack>, rows: &Rows) -> Vec<&'a Ack> {
    acks.filter(|ack| !rows.has(ack.id)).collect()
}

/// The time in which one node took writes on one timeline.
#[derive(Debug, Clone)]
pub(crate) struct Reign {
    pub(crate) node: Arc<str>,
    pub(crate) timeline: u32,
    pub(crate) first: Moment,
    pub(crate) last: Moment,
}

pub(crate) fn reigns<'a>(acks: impl Iterator<Item = &'a Ack>) -> Vec<Reign> {
    let mut found: BTreeMap<(Arc<str>, u32), Reign> = BTreeMap::new();
    for ack in acks {
        let reign = found
            .entry((ack.node.clone(), ack.timeline))
            .or_insert_with(|| Reign {
                node: ack.node.clone(),
                timeline: ack.timeline,
                first: ack.executed,
                last: ack.executed,
            });
        reign.first = reign.first.min(ack.executed);
        reign.last = reign.last.max(ack.executed);
    }
    let mut reigns: Vec<Reign> = found.into_values().collect();
    reigns.sort_by_key(|reign| reign.first);
    reigns
}

/// Two reigns of different nodes that overlap. Both ends of a reign are moments at which that server did insert rows that were
/// acknowledged afterwards, so an overlap is no matter of measurement.
pub(crate) fn overlap(reigns: &[Reign]) -> Option<(&Reign, &Reign)> {
    reigns.iter().enumerate().find_map(|(at, early)| {
        let late = reigns[at + 1..]
            .iter()
            .find(|late| late.node != early.node && late.first < early.last)?;
        Some((early, late))
    })
}

/// The longest time between two acknowledgements from the last one before `from` until `to`; acks in order.
pub(crate) fn outage(acks: &[Ack], from: Moment, to: Moment) -> Duration {
    let begin = acks
        .partition_point(|ack| ack.acknowledged <= from)
        .saturating_sub(1);
    let end = acks.partition_point(|ack| ack.acknowledged <= to);
    let mut moments: Vec<Moment> = acks[begin..end]
        .iter()
        .map(|ack| ack.acknowledged)
        .collect();
    moments.push(to);
    let gaps = moments.windows(2).map(|pair| pair[1].since(pair[0]));
    gaps.max().unwrap_or_else(|| to.since(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(id: u64, node: &str, timeline: u32, at: u64) -> Ack {
        let moment = |ms| Moment(Duration::from_millis(ms));
        Ack {
            id,
            node: node.into(),
            timeline,
            sent: moment(at - 1),
            executed: moment(at),
            acknowledged: moment(at + 1),
        }
    }

    #[test]
    fn a_lost_row_is_found() {
        let acks = [ack(1, "a", 1, 10), ack(2, "a", 1, 20), ack(5, "b", 2, 30)];
        let lost = |answer: &str| -> Vec<u64> {
            let rows = Rows::read(answer);
            missing(acks.iter(), &rows)
                .iter()
                .map(|ack| ack.id)
                .collect()
        };
        assert_eq!(lost("1 2\n4 9"), Vec::<u64>::new());
        assert_eq!(lost("1 1\n3 5"), vec![2]);
        assert_eq!(lost(""), vec![1, 2, 5]);
        assert_eq!(
            Rows::read("1 3\n7 7").beyond(&Rows::read("1 2")),
            vec![3, 7]
        );
    }

    #[test]
    fn two_writers_are_found() {
        let judge = |acks: &[Ack]| overlap(&reigns(acks.iter())).is_some();
        let handed_over = [ack(1, "a", 1, 10), ack(2, "b", 2, 20), ack(3, "a", 3, 30)];
        assert!(!judge(&handed_over), "there and back again");
        let late = [ack(1, "a", 1, 10), ack(2, "b", 2, 20), ack(3, "a", 1, 30)];
        assert!(judge(&late), "the old one took a write after the new one");
        let same = [ack(1, "a", 2, 10), ack(2, "b", 2, 20), ack(3, "a", 2, 21)];
        assert!(judge(&same), "one timeline of two");
    }

    #[test]
    fn the_longest_silence_is_the_outage() {
        let acks = [
            ack(1, "a", 1, 10),
            ack(2, "a", 1, 100),
            ack(3, "b", 2, 700),
            ack(4, "b", 2, 800),
        ];
        let moment = |ms| Moment(Duration::from_millis(ms));
        assert_eq!(outage(&acks, moment(150), moment(900)).as_millis(), 600);
        assert_eq!(
            outage(&acks, moment(150), moment(3000)).as_millis(),
            2199,
            "nobody came back"
        );
    }
}

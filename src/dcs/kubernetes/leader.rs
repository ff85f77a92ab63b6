//! The leader key: who holds it, from one compare and swap to the next.
//!
//! A write names the version that its decision was made on. After a conflict the version is refreshed only where the object still tells
//! the same tenure of the same leader: then somebody has written a neighbouring annotation, nothing else.

use serde_json::Value;

use super::api::Failure;
use super::object::{self, Object, Part, Record};
use super::{Kubernetes, SILENCE, TRIES, failed, is_as_written};
use crate::clock;
use crate::cluster::Leader;
use crate::dcs::{Lease, LeaseToken, Refusal, Write};
use crate::types::{MemberName, Moment, Revision};

fn lease(object: &Object) -> Lease {
    Lease {
        token: LeaseToken {
            // The tenure: what tells this lease from an earlier one of the same name.
            session: object.annotation("acquireTime").map(str::to_owned),
            revision: Some(Revision(object.version)),
        },
    }
}

/// What becomes of the leader object, given what it tells now.
type Change<'a> = dyn Fn(&Object) -> (Record, Option<Value>) + Send + Sync + 'a;

impl Kubernetes {
    fn ttl_seconds(&self) -> u64 {
        self.api.timings().ttl.as_secs().max(1)
    }

    /// The leader object: as cached while the watch lives, read otherwise.
    async fn leader_object(&self, deadline: Moment) -> Result<Option<Object>, Failure> {
        if self.cache.is_alive(SILENCE)
            && let Some(object) = self.cache.part(Part::Leader)
        {
            return Ok(Some(object));
        }
        self.read(deadline, Part::Leader).await
    }

    /// The leader's Endpoints route to this pod.
    fn routes(&self, current: Option<&Object>) -> Option<Value> {
        if !self.names.use_endpoints {
            return None;
        }
        let pod = self.cache.pod(self.name.as_ref()?.as_str())?;
        let own = self.pod_ip.as_deref();
        object::subsets(current, &pod, own, &self.namespace, &self.ports)
    }

    fn routes_nowhere(&self, current: &Object) -> Option<Value> {
        let routed = self.names.use_endpoints;
        routed.then(|| object::no_subsets(current)).flatten()
    }

    /// Changes the leader object by compare and swap. After a conflict the change is judged again on the object as it is now, but only if
    /// that is still the `same` as the one it was first judged on: for whoever claims the key to the last renewal, for its owner the same
    /// tenure, for the conflict may be with an own renewal that was long on its way.
    async fn change_leader(
        &self,
        deadline: Moment,
        mut current: Object,
        same: fn(&Record, &Record) -> bool,
        change: &Change<'_>,
    ) -> Write<Object> {
        let first = Record::of(&current);
        for _ in 0..TRIES {
            let (record, subsets) = change(&current);
            let annotations = record.annotations();
            let patched = self
                .patch(
                    deadline,
                    Part::Leader,
                    &annotations,
                    Some(current.version),
                    subsets.as_ref(),
                )
                .await;
            let failure = match patched {
                Ok(object) => return Write::Done(object),
                Err(failure) => failure,
            };
            if !matches!(failure, Failure::Conflict | Failure::Ambiguous(_)) {
                return failed(failure);
            }
            let object = match self.read_back(deadline, Part::Leader).await {
                Some(Some(object)) => object,
                Some(None) => return Write::Refused(Refusal::Precondition),
                // After an earlier try that was not answered, a conflict may be with that one: it does not prove that the key is lost.
                None if matches!(failure, Failure::Conflict) => {
                    return Write::Unknown(
                        self.api
                            .describe("a conflict, and the object cannot be read in time"),
                    );
                }
                None => return failed(failure),
            };
            if is_as_written(&object, &annotations) {
                return Write::Done(object);
            }
            if !same(&Record::of(&object), &first) {
                return Write::Refused(Refusal::Precondition);
            }
            // An unanswered request may still be on its way. With the same version it can only come before this one or never.
            current = object;
        }
        Write::Unknown(
            self.api
                .describe("the leader object changes faster than it can be written"),
        )
    }

    /// Takes the key if nobody holds it.
    pub(super) async fn claim(&self) -> Write<Lease> {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.api.deadline();
        // The watch may not have told yet that the key is free: only the object itself says that it is not.
        let found = match self.leader_object(deadline).await {
            Ok(_) if self.cache.is_led() => self.read(deadline, Part::Leader).await,
            found => found,
        };
        let current = match found {
            Ok(current) => current,
            Err(failure) => return failed(failure),
        };
        if self.cache.is_led() {
            return Write::Refused(Refusal::Precondition);
        }
        let ttl = self.ttl_seconds();
        let Some(current) = current else {
            let record = Record::default().claimed(me, ttl, clock::wall());
            let annotations = record.annotations();
            let routes = self.routes(None);
            let created = self
                .create(deadline, Part::Leader, &annotations, routes.as_ref())
                .await;
            return match created {
                Ok(object) => Write::Done(lease(&object)),
                Err(Failure::Ambiguous(error)) => {
                    match self.read_back(deadline, Part::Leader).await {
                        Some(Some(object)) if is_as_written(&object, &annotations) => {
                            Write::Done(lease(&object))
                        }
                        _ => Write::Unknown(error),
                    }
                }
                Err(failure) => failed(failure),
            };
        };
        let now = clock::wall();
        let changed = self
            .change_leader(deadline, current, Record::eq, &|object| {
                let record = Record::of(object).claimed(me, ttl, now);
                (record, self.routes(Some(object)))
            })
            .await;
        changed.map(|object| lease(&object))
    }

    fn is_mine(&self, object: &Object, tenure: Option<&str>) -> bool {
        let record = Record::of(object);
        let me = self.name.as_ref().map(MemberName::as_str);
        me.is_some() && record.leader.as_deref() == me && record.acquired.as_deref() == tenure
    }

    /// Changes the leader object while it is mine by `lease`.
    async fn change_mine(
        &self,
        deadline: Moment,
        lease: &Lease,
        change: impl Fn(&Object) -> (Record, Option<Value>) + Send + Sync,
    ) -> Write<Object> {
        let tenure = lease.token.session.as_deref();
        let mut current = match self.leader_object(deadline).await {
            Ok(current) => current,
            Err(failure) => return failed(failure),
        };
        // The cache may be behind an own write of a moment ago by another path, or ahead; the object itself decides.
        if !current
            .as_ref()
            .is_some_and(|object| self.is_mine(object, tenure))
        {
            current = match self.read(deadline, Part::Leader).await {
                Ok(current) => current,
                Err(failure) => return failed(failure),
            };
        }
        let Some(current) = current.filter(|object| self.is_mine(object, tenure)) else {
            return Write::Refused(Refusal::Precondition);
        };
        self.change_leader(deadline, current, Record::is_same_tenure, &change)
            .await
    }

    /// The lease for a key that tells my name.
    pub(super) async fn take_up(&self, leader: &Leader) -> Write<Lease> {
        if self.name.as_ref() != Some(&leader.name) {
            return Write::Refused(Refusal::Precondition);
        }
        let deadline = self.api.deadline();
        let current = match self.leader_object(deadline).await {
            Ok(current) => current,
            Err(failure) => return failed(failure),
        };
        let mine =
            |object: &Object| Record::of(object).leader.as_deref() == Some(leader.name.as_str());
        let Some(current) = current.filter(|object| mine(object) && self.cache.is_led()) else {
            return Write::Refused(Refusal::Precondition);
        };
        let (ttl, now) = (self.ttl_seconds(), clock::wall());
        let changed = self
            .change_leader(deadline, current, Record::is_same_tenure, &|object| {
                let record = Record::of(object).renewed(ttl, now);
                (record, self.routes(Some(object)))
            })
            .await;
        changed.map(|object| lease(&object))
    }

    /// Proves that the key is still mine by `lease`, and renews it.
    pub(super) async fn prolong(&self, lease: &Lease) -> Write {
        if let Err(refusal) = self.me() {
            return Write::Refused(refusal);
        }
        let deadline = self.api.deadline();
        // Over for this node is over for others, too, or will be in a moment; unless a renewal whose answer was lost has come through.
        if self.cache.ends_at().is_some() && !self.cache.is_led() {
            if let Err(failure) = self.read(deadline, Part::Leader).await {
                return failed(failure);
            }
            if !self.cache.is_led() {
                return Write::Refused(Refusal::Precondition);
            }
        }
        let (ttl, now) = (self.ttl_seconds(), clock::wall());
        let renewed = self.change_mine(deadline, lease, |object| {
            let record = Record::of(object).renewed(ttl, now);
            (record, self.routes(Some(object)))
        });
        renewed.await.map(|_| ())
    }

    /// Leaves the key to whoever takes it.
    pub(super) async fn let_go(&self, lease: &Lease) -> Write {
        let released = self.change_mine(self.api.deadline(), lease, |object| {
            let record = Record {
                leader: None,
                ..Record::of(object)
            };
            (record, self.routes_nowhere(object))
        });
        released.await.map(|_| ())
    }

    /// Puts the candidate's name into the key. It finds it there; a Patroni node takes that for its own lease (spec/ha.md §23.4).
    pub(super) async fn give(&self, lease: &Lease, candidate: &MemberName) -> Write {
        let (ttl, now) = (self.ttl_seconds(), clock::wall());
        let given = self.change_mine(self.api.deadline(), lease, |object| {
            let record = Record::of(object).claimed(candidate.as_str(), ttl, now);
            (record, self.routes_nowhere(object))
        });
        given.await.map(|_| ())
    }
}

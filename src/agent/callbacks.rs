//! When a callback is due, and with which role (spec/postgres-management.md §13, §6.3; spec/ha.md §5.14): each event once, whatever
//! turns of the loop happen to see in between.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cluster::wire;
use crate::postgres::hooks::{Callbacks, Event};
use crate::types::Role;

use super::plan::Plan;

/// One call that is due: the event, and the role to tell.
pub(super) type Due = Option<(Event, Role)>;

/// What callbacks have been told so far.
#[derive(Debug)]
pub(super) struct Known {
    /// One has been called: from then on a change of the role has a callback of its own.
    called: bool,
    /// The role they know; before the first call the role as observed.
    role: Role,
    /// Due as soon as the server is seen running: it was found so, or its start was not awaited.
    pending: Option<Event>,
    /// A new cluster's first call waits until this node leads it (spec/postgres-management.md §7.5).
    is_new: bool,
}

impl Known {
    fn new() -> Self {
        Known {
            called: false,
            role: Role::Uninitialized,
            pending: Some(Event::OnStart),
            is_new: false,
        }
    }

    fn call(&mut self, event: Event, role: Role) -> Due {
        self.role = match role {
            Role::Promoted => Role::Primary,
            Role::Primary
            | Role::StandbyLeader
            | Role::Replica
            | Role::Demoted
            | Role::Uninitialized => role,
        };
        self.called |= event != Event::OnReload;
        Some((event, self.role))
    }

    /// A job takes the server into its hands; this is how it was before.
    pub(super) fn taken(&mut self, observed: Role) {
        if !self.called {
            self.role = observed;
        }
    }

    /// A job starts the server, which is down: `event` is due when it is done, or whenever the server runs at last.
    pub(super) fn starting(&mut self, event: Event) {
        self.pending = Some(event);
        self.is_new = false;
    }

    /// A new cluster is made here.
    pub(super) fn created(&mut self) {
        self.pending = Some(Event::OnStart);
        self.is_new = true;
    }

    /// The job that was to start the primary here has done so.
    pub(super) fn started_primary(&mut self) -> Due {
        self.pending = None;
        self.call(Event::OnStart, Role::Primary)
    }

    /// The restart is done; the role is what it was.
    pub(super) fn restarted(&mut self) -> Due {
        self.pending = None;
        self.call(Event::OnRestart, self.role)
    }

    /// The server was told whom to follow, as `role`: `event` says how, unless its role is another one now. That is told even when its
    /// start did not complete.
    pub(super) fn followed(&mut self, role: Role, event: Event, done: bool) -> Due {
        if self.called && self.changes_to(role) {
            self.pending = None;
            return self.call(Event::OnRoleChange, role);
        }
        if !done {
            return None;
        }
        if event != Event::OnReload {
            self.pending = None;
        }
        self.call(event, role)
    }

    fn changes_to(&self, role: Role) -> bool {
        match self.role {
            Role::Primary | Role::Promoted | Role::Demoted => true,
            Role::Replica => role == Role::StandbyLeader,
            Role::StandbyLeader => role == Role::Replica,
            Role::Uninitialized => false,
        }
    }

    /// The server was told to leave recovery.
    pub(super) fn promoted(&mut self) -> Due {
        self.pending = None;
        self.call(Event::OnRoleChange, Role::Primary)
    }

    /// The server was stopped by us.
    pub(super) fn stopped(&mut self) -> Due {
        self.pending = None;
        self.call(Event::OnStop, self.role)
    }

    /// The leader key went to somebody else while the server here was shutting down (spec/postgres-management.md §4.2).
    pub(super) fn gave_key_away(&mut self) {
        if self.role == Role::Primary {
            self.role = Role::Demoted;
        }
    }

    /// The leader's server could not be started, and the key is given up (spec/ha.md §5.5).
    pub(super) fn failed_to_lead(&mut self) -> Due {
        let led = matches!(self.role, Role::Primary | Role::StandbyLeader);
        (self.called && led).then_some(())?;
        self.call(Event::OnRoleChange, Role::Demoted)
    }

    /// The data directory is another one now, and no role is left from the one before.
    pub(super) fn replaced(&mut self) {
        self.role = Role::Uninitialized;
        self.is_new = false;
    }

    /// The configuration was reloaded.
    pub(super) fn reloaded(&mut self, observed: Role) -> Due {
        self.taken(observed);
        self.call(Event::OnReload, self.role)
    }

    /// The server runs in this role and nobody works on it.
    pub(super) fn runs_as(&mut self, observed: Role, leads: bool) -> Due {
        if let Some(event) = self.pending {
            if self.is_new && !leads {
                return None;
            }
            self.is_new = false;
            self.pending = None;
            return self.call(event, observed);
        }
        let changed = matches!(
            (self.role, observed),
            (Role::Replica, Role::StandbyLeader)
                | (Role::StandbyLeader, Role::Replica)
                | (Role::Replica | Role::StandbyLeader, Role::Primary)
        );
        (self.called && changed).then_some(())?;
        self.call(Event::OnRoleChange, observed)
    }
}

/// Calls what is due. Its clones are one: the loop and its jobs tell the same story.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    known: Arc<Mutex<Known>>,
    callbacks: Arc<Callbacks>,
}

impl Caller {
    /// Nothing is told yet. Needs a running tokio.
    pub(super) fn new() -> Self {
        Caller {
            known: Arc::new(Mutex::new(Known::new())),
            callbacks: Arc::new(Callbacks::new()),
        }
    }

    /// Takes in what happened, and runs the callback that is configured for it, if any.
    pub(super) fn tell(&self, plan: &Plan, happened: impl FnOnce(&mut Known) -> Due) {
        let due = happened(&mut self.known());
        let Some((event, role)) = due else { return };
        let callbacks = &plan.effective.callbacks;
        let command = match event {
            Event::OnStart => &callbacks.on_start,
            Event::OnStop => &callbacks.on_stop,
            Event::OnRestart => &callbacks.on_restart,
            Event::OnReload => &callbacks.on_reload,
            Event::OnRoleChange => &callbacks.on_role_change,
        };
        let Some(command) = command else { return };
        let role = wire::role_text(role);
        if let Err(error) = self.callbacks.call(command, event, role, &plan.scope) {
            tracing::error!("postgresql.callbacks.{}: {error}", event.as_str());
        }
    }

    /// For what is no event by itself.
    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server found running in this role.
    fn attached(role: Role) -> Known {
        let mut told = Known::new();
        assert_eq!(told.runs_as(role, false), Some((Event::OnStart, role)));
        told
    }

    #[test]
    fn a_server_found_running_is_told_once() {
        let mut told = attached(Role::Replica);
        assert_eq!(told.runs_as(Role::Replica, false), None);
        // A sample that shows the past, or a role that only a job can change.
        let mut told = attached(Role::Primary);
        assert_eq!(told.runs_as(Role::Replica, false), None);
    }

    #[test]
    fn a_new_cluster_is_told_once_this_node_leads_it() {
        let mut told = Known::new();
        told.taken(Role::Uninitialized);
        told.created();
        assert_eq!(told.runs_as(Role::Primary, false), None);
        assert_eq!(
            told.runs_as(Role::Primary, true),
            Some((Event::OnStart, Role::Primary))
        );
        assert_eq!(told.runs_as(Role::Primary, true), None);
    }

    #[test]
    fn a_member_whose_bootstrap_failed_is_told_of_its_start_as_a_replica() {
        let mut told = Known::new();
        told.created();
        // Another member has created the cluster meanwhile; the start here is not awaited.
        told.starting(Event::OnStart);
        assert_eq!(
            told.runs_as(Role::Replica, false),
            Some((Event::OnStart, Role::Replica))
        );
    }

    #[test]
    fn a_switchover_is_told_on_both_sides() {
        let mut old = attached(Role::Primary);
        old.taken(Role::Primary);
        assert_eq!(old.stopped(), Some((Event::OnStop, Role::Primary)));
        // Meanwhile the loop has seen it as demoted and as replica; that does not matter.
        old.taken(Role::Replica);
        old.starting(Event::OnStart);
        assert_eq!(
            old.followed(Role::Replica, Event::OnStart, true),
            Some((Event::OnRoleChange, Role::Replica))
        );
        assert_eq!(old.runs_as(Role::Replica, false), None);

        let mut new = attached(Role::Replica);
        new.taken(Role::Replica);
        assert_eq!(new.promoted(), Some((Event::OnRoleChange, Role::Primary)));
        assert_eq!(new.runs_as(Role::Primary, true), None);
    }

    #[test]
    fn a_key_that_is_given_away_early_demotes_before_the_stop_is_over() {
        let mut told = attached(Role::Primary);
        told.gave_key_away();
        assert_eq!(told.stopped(), Some((Event::OnStop, Role::Demoted)));
        assert_eq!(
            told.followed(Role::Replica, Event::OnStart, true),
            Some((Event::OnRoleChange, Role::Replica))
        );
    }

    #[test]
    fn a_leader_that_failed_to_start_is_told_that_it_is_demoted_once() {
        let mut told = attached(Role::Primary);
        told.starting(Event::OnStart);
        assert_eq!(
            told.failed_to_lead(),
            Some((Event::OnRoleChange, Role::Demoted))
        );
        assert_eq!(told.failed_to_lead(), None);
        // Its start as a standby does not complete either: its role has changed all the same, once.
        told.starting(Event::OnStart);
        assert_eq!(
            told.followed(Role::Replica, Event::OnStart, false),
            Some((Event::OnRoleChange, Role::Replica))
        );
        told.starting(Event::OnStart);
        assert_eq!(
            told.followed(Role::Replica, Event::OnStart, true),
            Some((Event::OnStart, Role::Replica))
        );
    }

    #[test]
    fn a_standby_leader_comes_and_goes() {
        let mut told = attached(Role::Replica);
        assert_eq!(
            told.followed(Role::StandbyLeader, Event::OnReload, true),
            Some((Event::OnRoleChange, Role::StandbyLeader))
        );
        assert_eq!(told.runs_as(Role::StandbyLeader, true), None);
        // Nothing to follow anew: the role alone is another one.
        assert_eq!(
            told.runs_as(Role::Replica, false),
            Some((Event::OnRoleChange, Role::Replica))
        );
        assert_eq!(
            told.followed(Role::Replica, Event::OnReload, true),
            Some((Event::OnReload, Role::Replica))
        );
    }

    #[test]
    fn a_start_that_is_not_awaited_is_told_when_the_server_runs() {
        let mut told = attached(Role::Replica);
        assert_eq!(told.stopped(), Some((Event::OnStop, Role::Replica)));
        told.starting(Event::OnStart);
        assert_eq!(told.followed(Role::Replica, Event::OnStart, false), None);
        assert_eq!(
            told.runs_as(Role::Replica, false),
            Some((Event::OnStart, Role::Replica))
        );
        told.starting(Event::OnRestart);
        assert_eq!(told.restarted(), Some((Event::OnRestart, Role::Replica)));
    }

    #[test]
    fn a_copy_begins_without_a_role() {
        let mut told = attached(Role::Primary);
        assert_eq!(told.stopped(), Some((Event::OnStop, Role::Primary)));
        told.replaced();
        assert_eq!(
            told.followed(Role::Replica, Event::OnStart, true),
            Some((Event::OnStart, Role::Replica))
        );
    }

    #[test]
    fn before_the_first_call_nothing_has_changed() {
        let mut told = Known::new();
        told.taken(Role::Demoted);
        assert_eq!(
            told.followed(Role::Replica, Event::OnStart, true),
            Some((Event::OnStart, Role::Replica))
        );
    }
}

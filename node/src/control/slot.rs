//! A node whose API answers before the node itself is ready.

use super::{
    Answer, AuditReport, ChangeNode, Control, ControlError, CreateToken, CreateVolume, ErrorKind,
    Export, KeyReport, MovesStatus, NewToken, NodeFacts, PauseMoves, RecoverKeys, RecoveryReport,
    ReplaceNode, RevokeKeys, ScrubStatus, SetCustodians, StatusReport, Unlock, Unlocked,
    VerifyReport, VolumeDetail, VolumeFacts, VolumeKeys, WhatIfReport, WhyReport,
};
use bytes::Bytes;
use futures::future::{FutureExt, ready};
use smalti_storage::ids::VolumeId;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Passes everything on to the node once that has been put in; before, answers `Starting`.
///
/// The API must answer from the first moment, or nobody could tell a slow start (a long log to
/// replay) from a dead node.
#[derive(Clone, Default)]
pub struct ControlSlot(Arc<OnceLock<Arc<dyn Control>>>);

impl fmt::Debug for ControlSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSlot").field("ready", &self.0.get().is_some()).finish()
    }
}

impl ControlSlot {
    /// Puts the node in. Only the first call has an effect.
    ///
    /// # Errors
    /// Gives back a second node.
    pub fn put(&self, control: Arc<dyn Control>) -> Result<(), Arc<dyn Control>> {
        self.0.set(control)
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        question: impl FnOnce(&'a dyn Control) -> Answer<'a, T>,
    ) -> Answer<'a, T> {
        match self.0.get() {
            Some(control) => question(control.as_ref()),
            None => {
                let error = ControlError::new(ErrorKind::Starting, "the node is starting");
                ready(Err(error)).boxed()
            }
        }
    }
}

impl Control for ControlSlot {
    fn status(&self) -> Answer<'_, StatusReport> {
        self.ask(|control| control.status())
    }

    fn why(&self) -> Answer<'_, WhyReport> {
        self.ask(|control| control.why())
    }

    fn volumes(&self) -> Answer<'_, Vec<VolumeFacts>> {
        self.ask(|control| control.volumes())
    }

    fn volume(&self, name: String) -> Answer<'_, VolumeDetail> {
        self.ask(|control| control.volume(name))
    }

    fn create_volume(&self, request: CreateVolume) -> Answer<'_, VolumeDetail> {
        self.ask(|control| control.create_volume(request))
    }

    fn delete_volume(&self, name: String, id: VolumeId, force: bool) -> Answer<'_, ()> {
        self.ask(|control| control.delete_volume(name, id, force))
    }

    fn change_node(&self, name: String, change: ChangeNode) -> Answer<'_, NodeFacts> {
        self.ask(|control| control.change_node(name, change))
    }

    fn replace_node(&self, name: String, wish: ReplaceNode) -> Answer<'_, NodeFacts> {
        self.ask(|control| control.replace_node(name, wish))
    }

    fn remove_node(&self, name: String) -> Answer<'_, ()> {
        self.ask(|control| control.remove_node(name))
    }

    fn rotate_keys(&self, name: String) -> Answer<'_, VolumeKeys> {
        self.ask(|control| control.rotate_keys(name))
    }

    fn revoke_keys(&self, name: String, wish: RevokeKeys) -> Answer<'_, VolumeKeys> {
        self.ask(|control| control.revoke_keys(name, wish))
    }

    fn scrub_volume(&self, name: String) -> Answer<'_, ScrubStatus> {
        self.ask(|control| control.scrub_volume(name))
    }

    fn create_token(&self, request: CreateToken) -> Answer<'_, NewToken> {
        self.ask(|control| control.create_token(request))
    }

    fn pause_moves(&self, wish: PauseMoves) -> Answer<'_, MovesStatus> {
        self.ask(move |control| control.pause_moves(wish))
    }

    fn what_if(&self, stop: Vec<String>) -> Answer<'_, WhatIfReport> {
        self.ask(|control| control.what_if(stop))
    }

    fn read_volume(&self, name: String, offset: u64, size: u64) -> Answer<'_, Bytes> {
        self.ask(|control| control.read_volume(name, offset, size))
    }

    fn export_volume(&self, name: String) -> Answer<'_, Export> {
        self.ask(|control| control.export_volume(name))
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeFacts>> {
        self.ask(|control| control.nodes())
    }

    fn set_custodians(&self, wish: SetCustodians) -> Answer<'_, KeyReport> {
        self.ask(|control| control.set_custodians(wish))
    }

    fn verify_keys(&self, without: Vec<String>) -> Answer<'_, VerifyReport> {
        self.ask(|control| control.verify_keys(without))
    }

    fn audit_keys(&self, node: Option<String>) -> Answer<'_, Vec<AuditReport>> {
        self.ask(|control| control.audit_keys(node))
    }

    fn unlock(&self, wish: Unlock) -> Answer<'_, Unlocked> {
        self.ask(|control| control.unlock(wish))
    }

    fn keys(&self) -> Answer<'_, KeyReport> {
        self.ask(|control| control.keys())
    }

    fn recover_keys(&self, wish: RecoverKeys) -> Answer<'_, RecoveryReport> {
        self.ask(|control| control.recover_keys(wish))
    }
}

//! V6's calls on snapshots.

use super::context::Context;
use super::header::libxl_ext_asyncprogress_how;
use super::operation::{Fill, ResultTo};
use super::{Ctx, argument, guard};
use crate::agent::protocol::{Answer, Call};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskKind;
use crate::model::domain::GuestState;
use crate::model::name::SnapshotName;
use crate::plan::{DiskChoice, Take};
use crate::port::libxl_sys as sys;
use crate::types::ffi::{
    LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY, LIBXL_DOMAIN_SNAPSHOT_CREATE_LIVE,
    LIBXL_DOMAIN_SNAPSHOT_DELETE_CHILDREN, LIBXL_DOMAIN_SNAPSHOT_REVERT_FORCE,
    LIBXL_DOMAIN_SNAPSHOT_REVERT_PAUSED, LIBXL_DOMAIN_SNAPSHOT_REVERT_RUNNING,
    libxl_domain_snapshot,
};
use crate::types::{DiskSnapshot, DomainSnapshot};
use libxl_idl_builtin::c_function::with_ctx;
use libxl_idl_builtin::c_value::read_array;
use std::ffi::{c_char, c_int, c_uint};
use std::path::PathBuf;

/// Starts the operation, or waits for its end if there is no `ao_how`.
///
/// # Safety
/// The pointers are null or valid.
pub(super) unsafe fn begin(
    ctx: Ctx,
    domain: String,
    call: Call,
    ao_how: *const sys::libxl_asyncop_how,
    progress: *const libxl_ext_asyncprogress_how,
    fill: Option<Fill>,
) -> Result<c_int> {
    let context = Context::of(ctx);
    // SAFETY: the caller promises that it is null or valid.
    let progress = unsafe { progress.as_ref() }.copied();
    // SAFETY: as above.
    if let Some(how) = unsafe { ao_how.as_ref() } {
        context.start(domain, call, ResultTo::new(how), progress, fill)?;
        return Ok(0);
    }
    let ended = context.call(domain, call, progress)?;
    ended.fill(ctx, fill);
    Ok(ended.code)
}

/// `libxl_domain_snapshot_create`
///
/// # Safety
/// As the header says: the pointers are null or valid, the struct was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_snapshot_create(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    snapshot: *mut libxl_domain_snapshot,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string.
        let domain = unsafe { argument::text(domname, "the domain's name") }?;
        // SAFETY: the caller promises null or an initialised struct.
        let wanted = unsafe { argument::out(snapshot, "the snapshot") }?;
        let (live, disk_only) = create_flags(flags, wanted)?;
        // SAFETY: the caller promises null or strings.
        let (name, description, memory_file) = unsafe {
            (
                argument::optional_text(wanted.name, "the snapshot's name")?,
                argument::optional_text(wanted.description, "the snapshot's description")?,
                argument::optional_text(wanted.memory_file, "the snapshot's memory_file")?,
            )
        };
        let name = name.map(SnapshotName::new).transpose()?.map(String::from);
        // SAFETY: the caller promises an initialised struct.
        let disks = unsafe { disks(ctx, wanted) }?;
        let call = Call::Create {
            name,
            description,
            live,
            disk_only,
            memory_file: memory_file.map(PathBuf::from),
            disks,
        };
        // SAFETY: the caller promises null or valid pointers.
        unsafe {
            begin(
                ctx,
                domain,
                call,
                ao_how,
                aop_progress_how,
                Some(Fill::Snapshot(snapshot)),
            )
        }
    })
}

/// What is said of single disks: which, and how each is held. Of the rest of their fields nothing is read.
///
/// # Safety
/// There are as many as the struct says.
unsafe fn disks(ctx: Ctx, wanted: &libxl_domain_snapshot) -> Result<Vec<DiskChoice>> {
    // SAFETY: as the caller promises; and the ctx is valid while a call runs.
    let disks = unsafe {
        with_ctx(ctx.0.cast(), || {
            read_array::<DiskSnapshot>(wanted.disks, wanted.num_disks)
        })
    }
    .map_err(|error| {
        Error::new(ErrorKind::InvalidRequest, "read the snapshot's disks").because(error)
    })?;
    disks.iter().map(choice).collect()
}

fn choice(wanted: &DiskSnapshot) -> Result<DiskChoice> {
    let vdev = wanted.disk.vdev.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidRequest,
            "a disk of the snapshot has no vdev",
        )
        .hint("`disk.vdev` says which one is meant")
    })?;
    let kind = if wanted.external {
        DiskKind::External
    } else {
        DiskKind::Internal
    };
    let file = wanted.external_sn.pdev_path.as_ref();
    Ok(DiskChoice {
        vdev,
        take: Some(Take::As(kind)),
        file: file
            .filter(|path| wanted.external && !path.is_empty())
            .map(PathBuf::from),
    })
}

/// Whether the guest shall run meanwhile, and whether only the disks are wanted.
fn create_flags(flags: c_uint, wanted: &libxl_domain_snapshot) -> Result<(bool, bool)> {
    let (disk_only, live) = (
        LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
        LIBXL_DOMAIN_SNAPSHOT_CREATE_LIVE,
    );
    argument::flags(flags, disk_only | live, "libxl_domain_snapshot_create")?;
    let with_memory = wanted.memory || !wanted.memory_file.is_null() || flags & live != 0;
    if flags & disk_only != 0 && with_memory {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "a snapshot cannot be DISK_ONLY and include the memory",
        ));
    }
    Ok((flags & live != 0, flags & disk_only != 0))
}

/// `libxl_domain_snapshot_delete`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_snapshot_delete(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    snapshot_name: *const c_char,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or strings.
        let (domain, name) =
            unsafe { argument::named(domname, snapshot_name, "the snapshot's name") }?;
        let children = LIBXL_DOMAIN_SNAPSHOT_DELETE_CHILDREN;
        argument::flags(flags, children, "libxl_domain_snapshot_delete")?;
        let call = Call::Delete {
            name,
            children: flags & children != 0,
        };
        // SAFETY: the caller promises null or valid pointers.
        unsafe { begin(ctx, domain, call, ao_how, aop_progress_how, None) }
    })
}

/// `libxl_domain_snapshot_revert`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_snapshot_revert(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    snapshot_name: *const c_char,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or strings.
        let (domain, name) =
            unsafe { argument::named(domname, snapshot_name, "the snapshot's name") }?;
        let (running, paused, force) = (
            LIBXL_DOMAIN_SNAPSHOT_REVERT_RUNNING,
            LIBXL_DOMAIN_SNAPSHOT_REVERT_PAUSED,
            LIBXL_DOMAIN_SNAPSHOT_REVERT_FORCE,
        );
        argument::flags(
            flags,
            running | paused | force,
            "libxl_domain_snapshot_revert",
        )?;
        let state = match (flags & running != 0, flags & paused != 0) {
            (true, true) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a domain cannot be RUNNING and PAUSED",
                ));
            }
            (true, false) => Some(GuestState::Running),
            (false, true) => Some(GuestState::Paused),
            (false, false) => None,
        };
        let call = Call::Revert {
            name,
            state,
            force: flags & force != 0,
        };
        // SAFETY: the caller promises null or valid pointers.
        unsafe { begin(ctx, domain, call, ao_how, aop_progress_how, None) }
    })
}

/// `libxl_disk_snapshot_revert`, as V6 prints the name of `libxl_domain_snapshot_revert`.
///
/// # Safety
/// As for that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_disk_snapshot_revert(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    snapshot_name: *const c_char,
    flags: c_uint,
    ao_how: *const sys::libxl_asyncop_how,
    aop_progress_how: *const libxl_ext_asyncprogress_how,
) -> c_int {
    // SAFETY: the caller promises the same.
    unsafe {
        libxl_domain_snapshot_revert(ctx, domname, snapshot_name, flags, ao_how, aop_progress_how)
    }
}

/// `libxl_domain_snapshot_list`
///
/// # Safety
/// As the header says: the pointers are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_snapshot_list(
    ctx: *mut sys::libxl_ctx,
    domname: *const c_char,
    snapshots_r: *mut *mut libxl_domain_snapshot,
    num_snapshots_r: *mut c_int,
) -> c_int {
    guard(Ctx(ctx), || {
        let ctx = argument::ctx(ctx)?;
        // SAFETY: the caller promises null or a string, and null or valid pointers.
        let (domain, list, number) = unsafe {
            (
                argument::text(domname, "the domain's name")?,
                argument::out(snapshots_r, "snapshots_r")?,
                argument::out(num_snapshots_r, "num_snapshots_r")?,
            )
        };
        (*list, *number) = (std::ptr::null_mut(), 0);
        let ended = Context::of(ctx).call(domain, Call::List, None)?;
        if let Some(Answer::Snapshots(snapshots)) = ended.answer {
            let wrote = write_list(ctx, &snapshots, list, number);
            if wrote.is_err() {
                // SAFETY: what was written in part can be freed.
                unsafe { libxl_domain_snapshot_list_free(*list, *number) };
                (*list, *number) = (std::ptr::null_mut(), 0);
            }
            wrote?;
        }
        Ok(ended.code)
    })
}

fn write_list(
    ctx: Ctx,
    snapshots: &[DomainSnapshot],
    list: &mut *mut libxl_domain_snapshot,
    number: &mut c_int,
) -> Result<()> {
    let write = || libxl_idl_builtin::c_value::write_array(snapshots, list, number);
    // SAFETY: the ctx is valid while a call runs.
    unsafe { with_ctx(ctx.0.cast(), write) }
        .map_err(|error| Error::new(ErrorKind::Toolstack, "describe the snapshots").because(error))
}

/// `libxl_domain_snapshot_list_free`
///
/// # Safety
/// As the header says: the list is null or came from this library with that number, and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libxl_domain_snapshot_list_free(
    snapshots: *mut libxl_domain_snapshot,
    num_snapshots: c_int,
) {
    guard(Ctx(std::ptr::null_mut()), || {
        let (mut snapshots, mut number) = (snapshots, num_snapshots);
        // SAFETY: as the caller promises.
        unsafe {
            libxl_idl_builtin::c_value::dispose_array::<DomainSnapshot>(
                &mut snapshots,
                &mut number,
            );
        }
        Ok(0)
    });
}

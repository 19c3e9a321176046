//! libxl behind [`Toolstack`]: the calls that only the toolstack may make.

use super::libxl_log::Logger;
use super::libxl_sys as sys;
use super::{Configuration, Toolstack, domain_disks};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::model::configuration::redirect;
use crate::model::domain::GuestType;
use crate::plan::Switch;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::time::Instant;

/// The version of the stream that libxl writes since Xen 4.6.
const STREAM_VERSION: u32 = 2;

/// Children of libxl's are reaped by libxl, those of everybody else are not, as in xl itself.
struct ChildHooks(sys::libxl_childproc_hooks);

// SAFETY: it is never changed and holds no pointer to data.
unsafe impl Sync for ChildHooks {}

static CHILD_HOOKS: ChildHooks = ChildHooks(sys::libxl_childproc_hooks {
    chldowner: sys::libxl_sigchld_owner_libxl_sigchld_owner_libxl_always_selective_reap,
    fork_replacement: None,
    reaped_callback: None,
});

/// A libxl context of our own, with its logger.
pub struct Libxl {
    ctx: *mut sys::libxl_ctx,
    logger: NonNull<Logger>,
}

impl Libxl {
    /// Opens a context.
    ///
    /// # Errors
    /// If this is not a Xen host's domain 0, or the caller is not root.
    pub fn open() -> Result<Self> {
        let libxl = Self::open_without_children()?;
        // SAFETY: the hooks are static. In its default mode libxl would reap every child of the process.
        unsafe {
            sys::libxl_childproc_setmode(libxl.ctx, &raw const CHILD_HOOKS.0, ptr::null_mut());
        }
        Ok(libxl)
    }

    /// Opens a context that must not be used for anything that makes a child. It leaves the process's
    /// signals alone.
    ///
    /// # Errors
    /// As for [`Libxl::open`].
    pub(crate) fn open_without_children() -> Result<Self> {
        let logger = NonNull::from(Box::leak(Box::new(Logger::new())));
        let mut libxl = Self {
            ctx: ptr::null_mut(),
            logger,
        };
        // SAFETY: the out-pointer is ours; libxl sees the first field of the logger, which lives until
        // `drop` has freed the context.
        let rc = unsafe { sys::libxl_ctx_alloc(&raw mut libxl.ctx, 0, 0, logger.as_ptr().cast()) };
        if rc != 0 || libxl.ctx.is_null() {
            return Err(explain(libxl.logger(), rc, "open libxl".into())
                .hint("run this as root in domain 0 of a Xen host"));
        }
        Ok(libxl)
    }

    /// Whether the first word of libxl's context is the pointer to its logger.
    pub(crate) fn begins_with_its_logger(&self) -> bool {
        // SAFETY: libxl has allocated the context, which is larger than a word.
        let first = unsafe { *self.ctx.cast::<*mut c_void>() };
        first == self.logger.as_ptr().cast()
    }

    fn logger(&self) -> &Logger {
        // SAFETY: it came out of a box and is given back to one in `drop`; libxl only reads through it.
        unsafe { self.logger.as_ref() }
    }

    fn check(&self, rc: c_int, what: impl FnOnce() -> String) -> Result<()> {
        if rc == 0 {
            self.logger().take_errors();
            return Ok(());
        }
        Err(explain(self.logger(), rc, what()))
    }
}

impl Libxl {
    /// Makes a domain of libxl's stream, which is read from `stream`, and leaves it paused. Returns its
    /// domid.
    ///
    /// # Errors
    /// If the configuration is none of libxl's, or the restore fails; a half-built domain may be left.
    pub(super) fn create_restore(
        &self,
        configuration: &str,
        stream: BorrowedFd<'_>,
    ) -> Result<u32> {
        let mut config = DomainConfig::from_json(self, configuration)?;
        // SAFETY: all bytes zero is a value of this C struct, which the next call fills.
        let mut params: sys::libxl_domain_restore_params = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a whole struct of ours.
        unsafe { sys::libxl_domain_restore_params_init(&raw mut params) };
        params.stream_version = STREAM_VERSION;
        let mut domid = 0;
        // SAFETY: the structs are initialised, the descriptor stays open for the call, and null for
        // `ao_how` and the console's makes the call wait.
        let rc = unsafe {
            sys::libxl_domain_create_restore(
                self.ctx,
                &raw mut *config.0,
                &raw mut domid,
                stream.as_raw_fd(),
                -1,
                &raw const params,
                ptr::null(),
                ptr::null(),
            )
        };
        // SAFETY: it was initialised, and is not used again.
        unsafe { sys::libxl_domain_restore_params_dispose(&raw mut params) };
        self.check(rc, || "make a domain of a memory image".into())?;
        Ok(domid)
    }
}

/// What libxl calls the configuration that it keeps of a domain (`libxl-json`, see `libxl_userdata_store` in
/// libxl.h).
const STORED_CONFIGURATION: &CStr = c"libxl-json";

impl Libxl {
    /// The configuration by which libxl would make the domain anew, with the NUL that ends it taken off.
    fn stored_configuration(&self, domid: u32) -> Result<String> {
        let what = || format!("read the stored configuration of domain {domid}");
        let (mut data, mut length): (*mut u8, c_int) = (ptr::null_mut(), 0);
        // SAFETY: the names are C strings, the out-pointers are ours.
        let rc = unsafe {
            sys::libxl_userdata_retrieve(
                self.ctx,
                domid,
                STORED_CONFIGURATION.as_ptr(),
                &raw mut data,
                &raw mut length,
            )
        };
        self.check(rc, what)?;
        let missing = || Error::new(ErrorKind::Toolstack, what()).because("there is none");
        let length = usize::try_from(length).ok().filter(|_| !data.is_null());
        let length = length.ok_or_else(missing)?;
        // SAFETY: libxl says that it allocated so many bytes there.
        let bytes = unsafe { std::slice::from_raw_parts(data, length) }.to_vec();
        // SAFETY: they came from malloc and are ours.
        unsafe { sys::free(data.cast::<c_void>()) };
        let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes).to_vec();
        String::from_utf8(text)
            .map_err(|error| Error::new(ErrorKind::Toolstack, what()).because(error))
    }

    fn store_configuration(&self, domid: u32, configuration: &str) -> Result<()> {
        let what = || format!("replace the stored configuration of domain {domid}");
        // libxl keeps the NUL.
        let text = CString::new(configuration)
            .map_err(|error| Error::new(ErrorKind::Toolstack, what()).because(error))?;
        let bytes = text.as_bytes_with_nul();
        let length = c_int::try_from(bytes.len())
            .map_err(|error| Error::new(ErrorKind::Toolstack, what()).because(error))?;
        // SAFETY: the name is a C string, and the bytes are there for the call.
        let rc = unsafe {
            sys::libxl_userdata_store(
                self.ctx,
                domid,
                STORED_CONFIGURATION.as_ptr(),
                bytes.as_ptr(),
                length,
            )
        };
        self.check(rc, what)
    }
}

impl Drop for Libxl {
    fn drop(&mut self) {
        // SAFETY: the context came from libxl_ctx_alloc, or is null, and is freed once.
        unsafe { sys::libxl_ctx_free(self.ctx) };
        // SAFETY: the logger came out of a box, and with the context its last user is gone.
        drop(unsafe { Box::from_raw(self.logger.as_ptr()) });
    }
}

/// What libxl returned, in the words that it logged.
#[derive(Debug, thiserror::Error)]
#[error("libxl error {rc}{}", self.said())]
struct LibxlFailure {
    rc: c_int,
    errors: Vec<String>,
}

impl LibxlFailure {
    fn said(&self) -> String {
        if self.errors.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.errors.join("; "))
        }
    }
}

fn explain(logger: &Logger, rc: c_int, what: String) -> Error {
    let kind = match rc {
        sys::libxl_error_ERROR_DOMAIN_NOTFOUND => ErrorKind::NoSuchDomain,
        sys::libxl_error_ERROR_GUEST_TIMEDOUT => ErrorKind::GuestTimeout,
        sys::libxl_error_ERROR_ABORTED => ErrorKind::Aborted,
        _ => ErrorKind::Toolstack,
    };
    Error::new(kind, what).because(LibxlFailure {
        rc,
        errors: logger.take_errors(),
    })
}

/// Copies and frees a string that libxl allocated.
///
/// # Safety
/// `text` is null or a C string from malloc that nobody else owns.
unsafe fn adopt(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller says that it is a C string.
    let copy = unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: the caller says that it came from malloc and is ours.
    unsafe { sys::free(text.cast::<c_void>()) };
    Some(copy)
}

/// A `libxl_domain_config` that is disposed of whatever happens.
struct DomainConfig(Box<sys::libxl_domain_config>);

impl DomainConfig {
    fn new() -> Self {
        // SAFETY: all bytes zero is a value of this C struct, which libxl_domain_config_init fills.
        let mut config: Box<sys::libxl_domain_config> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: the pointer is to a whole struct of ours.
        unsafe { sys::libxl_domain_config_init(&raw mut *config) };
        Self(config)
    }

    fn from_json(libxl: &Libxl, json: &str) -> Result<Self> {
        let mut config = Self::new();
        let what = || "read the domain's configuration".to_owned();
        let json = CString::new(json)
            .map_err(|error| Error::new(ErrorKind::Corrupt, what()).because(error))?;
        // SAFETY: the struct was initialised, the text is a C string.
        let rc = unsafe {
            sys::libxl_domain_config_from_json(libxl.ctx, &raw mut *config.0, json.as_ptr())
        };
        libxl.check(rc, what)?;
        Ok(config)
    }

    fn guest_type(&self) -> Option<GuestType> {
        match self.0.c_info.type_ {
            sys::libxl_domain_type_LIBXL_DOMAIN_TYPE_PV => Some(GuestType::Pv),
            sys::libxl_domain_type_LIBXL_DOMAIN_TYPE_PVH => Some(GuestType::Pvh),
            sys::libxl_domain_type_LIBXL_DOMAIN_TYPE_HVM => Some(GuestType::Hvm),
            _ => None,
        }
    }
}

impl Drop for DomainConfig {
    fn drop(&mut self) {
        // SAFETY: it was initialised by libxl_domain_config_init.
        unsafe { sys::libxl_domain_config_dispose(&raw mut *self.0) };
    }
}

impl Toolstack for Libxl {
    fn domid_of(&self, name: &str) -> Result<Option<u32>> {
        let Ok(c_name) = CString::new(name) else {
            return Ok(None);
        };
        let mut domid = 0;
        // SAFETY: the name is a C string, the out-pointer is ours.
        let rc = unsafe { sys::libxl_name_to_domid(self.ctx, c_name.as_ptr(), &raw mut domid) };
        if rc == sys::libxl_error_ERROR_INVAL {
            // How libxl says that there is none.
            self.logger().take_errors();
            return Ok(None);
        }
        self.check(rc, || format!("look for domain '{name}'"))?;
        Ok(Some(domid))
    }

    fn name_of(&self, domid: u32) -> Result<Option<String>> {
        // SAFETY: libxl_domid_to_name returns null or a string from malloc that the caller frees.
        let name = unsafe { adopt(sys::libxl_domid_to_name(self.ctx, domid)) };
        self.logger().take_errors();
        Ok(name)
    }

    fn has_shadow_paging(&self) -> Result<bool> {
        // SAFETY: all bytes zero is a value of this C struct, which the next call fills.
        let mut info: sys::libxl_physinfo = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a whole struct of ours.
        unsafe { sys::libxl_physinfo_init(&raw mut info) };
        // SAFETY: the struct was initialised.
        let rc = unsafe { sys::libxl_get_physinfo(self.ctx, &raw mut info) };
        let has = info.cap_shadow;
        // SAFETY: it was initialised, and is not used again.
        unsafe { sys::libxl_physinfo_dispose(&raw mut info) };
        self.check(rc, || "ask the hypervisor what it can do".into())?;
        Ok(has)
    }

    fn disks_are_connected(&self, domid: u32) -> Result<bool> {
        domain_disks::are_connected(domid)
    }

    fn configuration(&self, domid: u32) -> Result<Configuration> {
        let mut config = DomainConfig::new();
        // SAFETY: the struct was initialised; a null `ao_how` makes the call wait.
        let rc = unsafe {
            sys::libxl_retrieve_domain_configuration(
                self.ctx,
                domid,
                &raw mut *config.0,
                ptr::null(),
            )
        };
        self.check(rc, || format!("read the configuration of domain {domid}"))?;
        // A restored domain gets a number of its own, as with `xl save`.
        config.0.c_info.domid = 0;
        // SAFETY: the struct is filled; the string that comes back is malloc's.
        let json = unsafe {
            adopt(sys::libxl_domain_config_to_json(
                self.ctx,
                &raw mut *config.0,
            ))
        };
        let failed = || {
            Error::new(
                ErrorKind::Toolstack,
                format!("write the configuration of domain {domid}"),
            )
        };
        let json = json.ok_or_else(failed)?;
        let value = serde_json::from_str(&json).map_err(|error| failed().because(error))?;
        let guest_type = config
            .guest_type()
            .ok_or_else(|| failed().because("it has no type"))?;
        Ok(Configuration {
            json,
            value,
            guest_type,
        })
    }

    fn suspend_to(
        &self,
        domid: u32,
        sink: BorrowedFd<'_>,
        live: bool,
        observer: &dyn Observer,
    ) -> Result<Option<Instant>> {
        let flags = if live { sys::LIBXL_SUSPEND_LIVE } else { 0 };
        let flags = c_int::try_from(flags).unwrap_or_default();
        self.logger().take_suspended();
        // SAFETY: the descriptor stays open for the call; a null `ao_how` makes the call wait.
        let rc = self.logger().observed(observer, || unsafe {
            sys::libxl_domain_suspend(self.ctx, domid, sink.as_raw_fd(), flags, ptr::null())
        });
        self.check(rc, || format!("save the memory of domain {domid}"))?;
        Ok(self.logger().take_suspended())
    }

    fn resume(&self, domid: u32) -> Result<()> {
        // SAFETY: plain values; 1 lets the guest go on where it was (it knows that it was not restored).
        let rc = unsafe { sys::libxl_domain_resume(self.ctx, domid, 1, ptr::null()) };
        self.check(rc, || format!("resume domain {domid}"))
    }

    fn pause(&self, domid: u32) -> Result<()> {
        // SAFETY: plain values.
        let rc = unsafe { sys::libxl_domain_pause(self.ctx, domid, ptr::null()) };
        self.check(rc, || format!("pause domain {domid}"))
    }

    fn unpause(&self, domid: u32) -> Result<()> {
        // SAFETY: plain values.
        let rc = unsafe { sys::libxl_domain_unpause(self.ctx, domid, ptr::null()) };
        self.check(rc, || format!("unpause domain {domid}"))
    }

    fn point_disks(&self, domid: u32, switches: &[Switch]) -> Result<()> {
        let before = self.stored_configuration(domid)?;
        let after = redirect(&before, switches)?;
        self.store_configuration(domid, &after)?;
        domain_disks::point(domid, switches)
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        // SAFETY: plain values; a null `ao_how` makes the call wait until the domain is gone.
        let rc = unsafe { sys::libxl_domain_destroy(self.ctx, domid, ptr::null()) };
        self.check(rc, || format!("destroy domain {domid}"))
    }
}

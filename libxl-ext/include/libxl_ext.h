/*
 * libxl-ext: snapshots of Xen domains for toolstacks that use libxl.
 *
 * Copyright (C) 2026 the libxl-ext authors. GPL-3.0-only; see LICENSE.
 *
 * Everything here follows libxl's conventions: the ctx comes first, functions return 0 or a negative
 * ERROR_* of <libxl.h>, messages for people go to the ctx's own xentoollog logger. The manual pages,
 * libxl_ext(3) first, tell the rest.
 */
#ifndef LIBXL_EXT_H
#define LIBXL_EXT_H

#include <libxl.h>

#ifdef __cplusplus
extern "C" {
#endif

#include <_libxl_ext_types.h>

/*
 * How operations run
 * ==================
 *
 * An operation runs in a process of its own, which is no child of the application's: it sends no
 * SIGCHLD, and no wait of the application's can find it. So it makes no difference whether libxl or the
 * application owns SIGCHLD, whether the application has threads, and what it forks. The library itself
 * makes no thread and installs no signal handler. If the application ends while an operation runs, the
 * operation is taken back, as after libxl_ext_ao_abort. (Only an application that takes in orphans, as a
 * subreaper or as process 1, finds these processes when they end, as it finds the ones of others.)
 *
 * With ao_how == NULL a call waits for the end of the operation and returns its result.
 *
 * Otherwise 0 means that the operation has been started, and its result comes later:
 *  - where ao_how->callback is set, by a call of it;
 *  - else by an event OPERATION_COMPLETE whose for_user is ao_how->u.for_event.
 * If the call returns an error there is neither. Only what an operation writes to has to stay valid
 * until the operation completes, which is when its result is delivered or its ctx released: *ao_how,
 * *aop_progress_how and all texts are copied.
 *
 * Progress: with aop_progress_how == NULL none is reported. Where aop_progress_how->callback is set it
 * is called with an event OPERATION_PROGRESS, which stays the library's own and is valid during the
 * callback; else such an event is queued. Reports that nobody has fetched are replaced by newer ones of
 * the same operation. All reports of an operation come before its completion.
 *
 * Which thread calls back
 * -----------------------
 *
 * Callbacks are made by libxl_ext_event_check and libxl_ext_event_wait, on the thread that calls them,
 * and, for the progress of a call with ao_how == NULL, by that call itself; those of libxl_replication_ops by
 * libxl_replication_*. There is no other time and no other thread. No lock is held meanwhile: a callback may call this library and libxl with any ctx, but
 * it must not release its own (libxl_ext_ctx_release). It must return: no exception, no longjmp. A thread
 * that is in a call is not cancelled (pthread_cancel) before it returns.
 *
 * Several threads may call at the same time, each with its own ctx, and also with the same one; the
 * logger of a ctx that several threads use must be able to bear that, as libxl demands too.
 *
 * A suspend is an event of the domain, also when a snapshot is the reason. An application that uses
 * libxl_evenable_domain_death is told of it (DOMAIN_SHUTDOWN, reason suspend), and libxl tells of one
 * shutdown only: it has to enable the events anew after each operation (libxl_ext(3), EVENTS).
 *
 * After a fork the child may exec, or go on; it must not use a ctx that its parent used with this
 * library, but it may allocate one of its own.
 */

typedef struct {
    void (*callback)(libxl_ctx *ctx, const libxl_ext_event *event, void *for_callback);
    libxl_ev_user for_event; /* always used */
    void *for_callback; /* passed to callback */
} libxl_ext_asyncprogress_how;

/*
 * Returns a file descriptor for poll, select or epoll. While it is readable, libxl_ext_event_check has
 * something to do. It belongs to the library: it may neither be read nor closed. It stays the same until
 * libxl_ext_ctx_release. A negative value is an ERROR_*.
 */
int libxl_ext_event_fd(libxl_ctx *ctx);

/*
 * Makes the callbacks that are due, then returns the oldest event, to be freed by libxl_ext_event_free.
 * ERROR_NOT_READY says that there is none; it does not block.
 */
int libxl_ext_event_check(libxl_ctx *ctx, libxl_ext_event **event_r);

/*
 * The same, but blocks until there is an event. ERROR_NOT_READY says that there is nothing to wait for:
 * no event is queued, and no asynchronous operation is under way.
 */
int libxl_ext_event_wait(libxl_ctx *ctx, libxl_ext_event **event_r);

/* Frees an event. NULL is allowed. */
void libxl_ext_event_free(libxl_ctx *ctx, libxl_ext_event *event);

/*
 * Asks the operation that was started with this ao_how to stop, as libxl_ao_abort does with libxl's. It
 * does so where that leaves everything as it was, and then completes with ERROR_ABORTED; it may also be
 * too late for that, and it completes as it would have.
 *  0               it was asked
 *  ERROR_NOTFOUND  no such operation is under way
 *  ERROR_ABORTED   it was asked before
 * how == NULL stands for an operation that some thread has called with ao_how == NULL (not for a list).
 */
int libxl_ext_ao_abort(libxl_ctx *ctx, const libxl_asyncop_how *how);

/*
 * Forgets the ctx: aborts the operations that are under way, waits for their end, drops the events and
 * callbacks that are due, and the replication states, whose functions are not called for it. To be called
 * before libxl_ctx_free, while no other thread uses the ctx. It can be repeated.
 */
void libxl_ext_ctx_release(libxl_ctx *ctx);

/*
 * Keeps the snapshots of this ctx's calls below another directory (an absolute path); NULL stands for
 * the default, /var/lib/xen/libxl-ext. Until libxl_ext_ctx_release.
 */
int libxl_ext_set_store(libxl_ctx *ctx, const char *directory);

/*
 * Snapshots
 * =========
 *
 * A domain is named by its name, not by its domid: its snapshots outlive its domid, and the host.
 * Names are UTF-8. NULL where something is needed is ERROR_INVAL.
 * Flags are the LIBXL_DOMAIN_SNAPSHOT_* of the enumerations in <_libxl_ext_types.h>; a bit that is in
 * none of them is ERROR_INVAL.
 */

/*
 * Takes a snapshot of a domain's memory and of all its writable disks, at one instant. The guest goes
 * on afterwards. With LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY, of the disks of a domain that is off.
 *
 * Of *snapshot, `name` (NULL: the time in seconds since the epoch), `description` and `memory_file` (an
 * absolute path of a new file; NULL: one in the store) are read, and of each of its `disks` which it is
 * (`disk.vdev`) and how it is taken: inside its image, or, if `external`, in a new image at
 * `external_sn.pdev_path` (NULL: beside the disk's). Writable disks that are not among them are taken in
 * the way that is sensible for each; with DISK_ONLY, and unless there are none, they are left out. One that
 * was filled by an earlier call is disposed of and initialised anew before it is used again. On success it is
 * replaced by the snapshot as it was recorded. It belongs to the caller, before and afterwards, and stays
 * valid until the operation completes.
 */
int libxl_domain_snapshot_create(libxl_ctx *ctx, const char *domname,
                                 libxl_domain_snapshot *snapshot, unsigned int flags,
                                 const libxl_asyncop_how *ao_how,
                                 const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Deletes a snapshot; with LIBXL_DOMAIN_SNAPSHOT_DELETE_CHILDREN also every descendant of it. Without,
 * its children are kept.
 */
int libxl_domain_snapshot_delete(libxl_ctx *ctx, const char *domname,
                                 const char *snapshot_name, unsigned int flags,
                                 const libxl_asyncop_how *ao_how,
                                 const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Brings a domain's memory and disks back to a snapshot. It gets a new domid. A domain that runs is
 * destroyed for it, its present state is lost. On failure it is as it was, perhaps under a new domid.
 *
 * The restored domain is the application's, as one that it created through libxl: no xl process acts on
 * what it does later.
 */
int libxl_domain_snapshot_revert(libxl_ctx *ctx, const char *domname,
                                 const char *snapshot_name, unsigned int flags,
                                 const libxl_asyncop_how *ao_how,
                                 const libxl_ext_asyncprogress_how *aop_progress_how);

/* The same, under the name that the design (V6) prints. */
int libxl_disk_snapshot_revert(libxl_ctx *ctx, const char *domname,
                               const char *snapshot_name, unsigned int flags,
                               const libxl_asyncop_how *ao_how,
                               const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Lists the snapshots of a domain, parents before children, into an array to be freed by
 * libxl_domain_snapshot_list_free. Without snapshots the array is NULL and the number 0. Like every
 * call it first ends what an earlier, interrupted operation on the domain left, which can take long.
 */
int libxl_domain_snapshot_list(libxl_ctx *ctx, const char *domname,
                               libxl_domain_snapshot **snapshots_r, int *num_snapshots_r);

/* Disposes of each element and frees the array. NULL is allowed. */
void libxl_domain_snapshot_list_free(libxl_domain_snapshot *snapshots, int num_snapshots);

/*
 * Managed save
 * ============
 *
 * The library keeps what was saved of a domain, and the domain goes on from there when it is started by it. There are
 * no flags yet: flags is 0, any bit is ERROR_INVAL.
 */

/*
 * Saves a domain, which is gone afterwards. Whatever starts it next through this library, or by
 * xl-ext, goes on from there. A domain that is paused goes on paused.
 */
int libxl_domain_managed_save(libxl_ctx *ctx, const char *domname, unsigned int flags,
                              const libxl_asyncop_how *ao_how,
                              const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Whether something is kept of a domain: 1 if so, 0 if not, also for a name that nobody knows. It says
 * nothing of whether the domain can go on from it.
 */
int libxl_domain_has_managed_save_image(libxl_ctx *ctx, const char *domname, unsigned int flags);

/* Gives up what was saved of a domain, whatever is the matter with it. ERROR_NOTFOUND if there is nothing. */
int libxl_domain_managed_save_remove(libxl_ctx *ctx, const char *domname, unsigned int flags,
                                     const libxl_asyncop_how *ao_how,
                                     const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Lets a domain that was saved go on, and tells its domid. Once the guest may run, what was saved is gone.
 * The domain is the application's, as after libxl_domain_snapshot_revert.
 *  ERROR_NOTFOUND, ERROR_DOMAIN_NOTFOUND
 *                   nothing was saved of it: the application boots it (libxl_domain_create_new)
 *  ERROR_NOT_READY  the domain is there already
 *  ERROR_FAIL       among others: what was saved is damaged, or its disks were written to since. It is kept,
 *                   until libxl_domain_managed_save_remove
 */
int libxl_domain_managed_start(libxl_ctx *ctx, const char *domname, uint32_t *domid_r,
                               unsigned int flags, const libxl_asyncop_how *ao_how,
                               const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Block pull
 * ==========
 *
 * A disk gets what it lacks from the images below it while the guest goes on, until it needs them no more
 * (after libvirt's proposal, version 4). The disk is named by its virtual device or by the path of its
 * image; it is a qcow2 image on the qdisk backend. What was pulled stays whatever happens, and the next
 * pull goes on with it. While a disk is pulled, snapshots of the domain are neither taken nor reverted
 * to nor deleted: ERROR_NOT_READY.
 */

/*
 * How far a pull by increments is: 0 for the first call, then what the last one left. It may be divided
 * by the `end` of libxl_domain_block_pull_info. It belongs to one pull of one disk.
 */
typedef uint64_t libxl_domain_block_pull_cursor;

/*
 * Pulls one increment, of 16 MiB of the disk or more, and moves the cursor; the last one leaves a disk
 * that stands on nothing, and a cursor that equals `end`. One more call says so to the log and returns 0.
 * The job waits in the domain's QEMU between two calls, also when the application is gone.
 *
 * With LIBXL_DOMAIN_BLOCK_PULL_CONTINUOUS all of it is copied in the background, and the operation
 * completes when that has begun; cursor is not used and may be NULL. If the domain is off, it completes
 * when all is copied.
 *  ERROR_NOT_READY  among others: the cursor is of another pull, or of another moment of it
 *  ERROR_NI         the disk is raw, read-only, or not on the qdisk backend, or holds snapshots inside
 */
int libxl_domain_block_pull(libxl_ctx *ctx, const char *domname, const char *path,
                            libxl_domain_block_pull_cursor *cursor, unsigned int flags,
                            const libxl_asyncop_how *ao_how,
                            const libxl_ext_asyncprogress_how *aop_progress_how);

/*
 * Ends a pull, whoever started it. The disk stands on the images below it still. One that is over is no
 * error; ERROR_INVAL says that there was none. There are no flags yet.
 */
int libxl_domain_block_pull_abort(libxl_ctx *ctx, const char *domname, const char *path,
                                  unsigned int flags);

/*
 * Tells how far a pull is, or was at its end, whoever started it. ERROR_NOTFOUND says that there was none.
 * There are no flags yet. *info was initialised by libxl_domain_block_pull_info_init.
 */
int libxl_domain_get_block_pull_info(libxl_ctx *ctx, const char *domname, const char *path,
                                     libxl_domain_block_pull_info *info, unsigned int flags);

/*
 * Asks for one event BLOCK_PULL, when the pull of a disk has ended, by a call of how->callback, or, if
 * that is NULL, from libxl_ext_event_check. It comes whoever started the pull, also if it has ended
 * before, or begins later, or if the last one of several increments ends it. It is to be asked for anew
 * then. Whoever asks no more calls libxl_ext_evdisable_block_pull. There are no flags yet.
 */
int libxl_ext_evenable_block_pull(libxl_ctx *ctx, const char *domname, const char *path,
                                  unsigned int flags, const libxl_ext_asyncprogress_how *how);

/*
 * Takes that back: what was asked for with the same callback and for_... is not told any more once this
 * returns. ERROR_NOTFOUND says that nothing was, or that it was told before.
 */
int libxl_ext_evdisable_block_pull(libxl_ctx *ctx, const libxl_ext_asyncprogress_how *how);

/*
 * Replication
 * ===========
 *
 * What is replicated, such as a disk, is a state, and all states of a ctx are started, checkpointed, asked for
 * errors and stopped together, in the order in which they were made (after QEMU's replication.h). How a
 * state does each of these the application says, by functions of its own.
 *
 * A state is stopped, running, or has failed over; after a stop that failed it is uncertain. ERROR_NOT_READY
 * is the answer to what does not fit, also if there are no states: a start of what is not stopped, a
 * checkpoint of what does not run, a stop of what neither runs nor is uncertain. What has failed over is not
 * started again; it is removed and made anew.
 *
 * The calls return when all is done. What the functions return comes back unchanged: of several errors
 * the first, and all of them are told to the log.
 */

/* A state. It belongs to the library, until libxl_replication_remove or libxl_ext_ctx_release. */
typedef struct libxl_replication_state libxl_replication_state;

/*
 * What the application does with a state. Each function returns 0 or a negative ERROR_*, and gets the
 * opaque of libxl_replication_new. It is called on the thread that calls the library, as callbacks are: no
 * lock is held meanwhile, and it may call this library and libxl with any ctx. But a call of
 * libxl_replication_* with its own ctx is answered by ERROR_LOCK_FAIL, from another thread too.
 *
 *  start       begins to replicate. If it fails, it leaves nothing running: no stop follows
 *  stop        ends it; with failover so that the guest of this side goes on alone. After a failure the same
 *              stop may come again
 *  checkpoint  makes the present what both sides have in common
 *  get_error   tells whether an error has occurred since the start; also after a failover
 */
typedef struct {
    int (*start)(libxl_ctx *ctx, void *opaque, libxl_replication_mode mode);
    int (*stop)(libxl_ctx *ctx, void *opaque, bool failover);
    int (*checkpoint)(libxl_ctx *ctx, void *opaque);
    int (*get_error)(libxl_ctx *ctx, void *opaque);
} libxl_replication_ops;

/*
 * Makes a state, which is stopped. *ops is copied; none of its members may be NULL. opaque has to stay valid
 * until the state is removed or its ctx released. On failure *rs_out is NULL.
 *  ERROR_NOT_READY  others run, or are uncertain
 */
int libxl_replication_new(libxl_ctx *ctx, const libxl_replication_ops *ops, void *opaque,
                          libxl_replication_state **rs_out);

/*
 * Removes a state, whose functions are not called any more. ERROR_NOT_READY says that it runs, ERROR_INVAL
 * that the ctx has no such state, or no more.
 */
int libxl_replication_remove(libxl_ctx *ctx, libxl_replication_state *rs);

/*
 * Starts all states. If one fails, those before it are stopped again, without failover and the last one first,
 * and its error is returned. The guest must not run meanwhile, and the secondary's start comes before the
 * primary's.
 */
int libxl_replication_start_all(libxl_ctx *ctx, libxl_replication_mode mode);

/*
 * Makes a checkpoint of all states, after the whole state of the guest has been transferred to the
 * secondary. If one fails the states after it are left out; the guest must not go on, nor the secondary
 * fail over, before another checkpoint has succeeded.
 */
int libxl_replication_do_checkpoint_all(libxl_ctx *ctx);

/* Asks all states that are not stopped whether an error has occurred, up to the first that tells one. */
int libxl_replication_get_error_all(libxl_ctx *ctx);

/*
 * Stops all states that run, also if one fails. That one is uncertain then: the same call again stops it, and
 * one with the other value of failover is ERROR_NOT_READY. Without failover the guest must not run
 * meanwhile.
 */
int libxl_replication_stop_all(libxl_ctx *ctx, bool failover);

#ifdef __cplusplus
}
#endif

#endif /* LIBXL_EXT_H */

/*
 * What each call of libxl-ext does, seen from the loop. What the guests hold afterwards is looked at from
 * outside, by the steps of the lab.
 */
#include "daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libxl_utils.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Parts
 * ===== */

int create(struct operation *operation, const char *domain, const char *name)
{
    libxl_domain_snapshot snapshot;

    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup(name);
    int rc = libxl_domain_snapshot_create(operation->daemon->ctx, domain, &snapshot, 0, operation->ao,
                                          operation->progress);
    rc = operation_finish(operation, rc);
    /* What is replaced on success must stay where it is until the operation has ended. */
    libxl_domain_snapshot_dispose(&snapshot);
    return rc;
}

void expect_snapshots(struct daemon *daemon, const char *domain, const char *names)
{
    char found[256] = "";
    libxl_domain_snapshot *snapshots = NULL;
    int count = -1;

    EXPECT_RC(libxl_domain_snapshot_list(daemon->ctx, domain, &snapshots, &count), 0,
              "libxl_domain_snapshot_list");
    EXPECT((snapshots == NULL) == (count == 0), "%d snapshots at %p", count, (void *)snapshots);
    for (int i = 0; i < count; i++) {
        size_t length = strlen(found);

        snprintf(found + length, sizeof(found) - length, "%s%s", i ? " " : "", snapshots[i].name);
    }
    libxl_domain_snapshot_list_free(snapshots, count);
    say(daemon->name, "list: '%s'", found);
    EXPECT(strcmp(found, names) == 0, "'%s' instead of '%s'", found, names);
}

void expect_quiet(struct daemon *daemon)
{
    libxl_ext_event *event;

    EXPECT_RC(libxl_ext_event_check(daemon->ctx, &event), ERROR_NOT_READY, "libxl_ext_event_check");
    /* It would block if something was under way. */
    EXPECT_RC(libxl_ext_event_wait(daemon->ctx, &event), ERROR_NOT_READY, "libxl_ext_event_wait");
}

/* What the process has open besides the standard files. */
struct files {
    unsigned int open;
    unsigned int inherited; /* by a program that is executed */
};

static struct files count_files(void)
{
    struct files files = {0};
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;

    EXPECT(directory, "%s", strerror(errno));
    while ((entry = readdir(directory))) {
        int fd = atoi(entry->d_name);

        if (fd <= STDERR_FILENO || fd == dirfd(directory))
            continue;
        int flags = fcntl(fd, F_GETFD);
        /* valgrind's own are listed, but may not be touched. */
        if (flags < 0)
            continue;
        files.open++;
        if (!(flags & FD_CLOEXEC))
            files.inherited++;
    }
    closedir(directory);
    return files;
}

/* Creating and listing
 * ==================== */

/* The caller's snapshot becomes the one that was recorded: the same that is listed. */
static void expect_as_listed(struct daemon *daemon, const char *domain,
                             libxl_domain_snapshot *snapshot, time_t before)
{
    libxl_domain_snapshot *listed;
    int count;

    EXPECT(strcmp(snapshot->name, "one") == 0, "%s", snapshot->name);
    EXPECT(snapshot->description && strcmp(snapshot->description, "of the daemon") == 0, "%s",
           snapshot->description ? snapshot->description : "NULL");
    EXPECT(snapshot->creation_time >= (uint64_t)before &&
               snapshot->creation_time <= (uint64_t)time(NULL),
           "%llu", (unsigned long long)snapshot->creation_time);
    EXPECT(snapshot->memory && snapshot->memory_file, "a snapshot without memory");
    EXPECT(snapshot->num_disks > 0, "a snapshot without disks");
    for (int i = 0; i < snapshot->num_disks; i++) {
        const libxl_disk_snapshot *disk = &snapshot->disks[i];

        EXPECT(disk->disk.vdev && disk->disk.pdev_path, "disk %d has no name or no image", i);
        EXPECT(disk->name && *disk->name, "the snapshot of %s has no name", disk->disk.vdev);
        say(daemon->name, "snapshot of %s, in %s: %s", disk->disk.vdev, disk->disk.pdev_path,
            disk->name);
    }

    EXPECT_RC(libxl_domain_snapshot_list(daemon->ctx, domain, &listed, &count), 0, "list");
    EXPECT(count == 1, "%d snapshots", count);
    char *ours = libxl_domain_snapshot_to_json(daemon->ctx, snapshot);
    char *theirs = libxl_domain_snapshot_to_json(daemon->ctx, &listed[0]);
    EXPECT(ours && theirs && strcmp(ours, theirs) == 0, "%s\n%s", ours, theirs);
    free(ours);
    free(theirs);
    libxl_domain_snapshot_list_free(listed, count);
}

static void run_create(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    libxl_domain_snapshot snapshot;
    time_t before = time(NULL);
    struct files files = count_files();

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup("one");
    snapshot.description = strdup("of the daemon");
    operation_prepare(&operation, &daemon, "create one", EVENTS);
    int rc = libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0, operation.ao,
                                          operation.progress);
    EXPECT(count_files().inherited == files.inherited, "a program that we execute inherits a file");
    EXPECT_RC(operation_finish(&operation, rc), 0, "create one");
    EXPECT(operation.reports > 0, "no progress was reported");
    expect_as_listed(&daemon, arguments->domain, &snapshot, before);
    libxl_domain_snapshot_dispose(&snapshot);

    operation_prepare(&operation, &daemon, "create two", CALLBACKS);
    EXPECT_RC(create(&operation, arguments->domain, "two"), 0, "create two");
    EXPECT(operation.reports > 0, "no progress was reported");
    operation_prepare(&operation, &daemon, "create three", MIXED);
    EXPECT_RC(create(&operation, arguments->domain, "three"), 0, "create three");
    EXPECT(operation.reports > 0, "no progress was reported");
    expect_snapshots(&daemon, arguments->domain, "one two three");
    expect_quiet(&daemon);
    EXPECT(!logger_has(daemon.logger, ""), "success is quiet");
    daemon_close(&daemon);
}

/* Reverting and deleting what `create` has made
 * ============================================= */

static void run_revert(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    time_t end = time(NULL) + LIMIT;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    uint32_t domid = daemon_watch(&daemon, arguments->domain);
    operation_prepare(&operation, &daemon, "revert to one", CALLBACKS);
    int rc = libxl_domain_snapshot_revert(daemon.ctx, arguments->domain, "one", 0, operation.ao,
                                          operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "revert to one");
    EXPECT(operation.reports > 0, "no progress was reported");
    /* The domain that there was is gone, and a loop that watches it is told by libxl, as ever. */
    while (daemon.deaths == 0) {
        EXPECT(time(NULL) < end, "libxl does not report the death of domain %u", domid);
        daemon_turn(&daemon, 1000);
    }
    EXPECT(daemon_watch(&daemon, arguments->domain) != domid, "it still is domain %u", domid);
    daemon_close(&daemon);
}

static void run_delete(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    expect_snapshots(&daemon, arguments->domain, "one two three");
    operation_prepare(&operation, &daemon, "delete two", EVENTS);
    /* Nobody has to want reports. */
    int rc = libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "two", 0, operation.ao,
                                          NULL);
    EXPECT_RC(operation_finish(&operation, rc), 0, "delete two");
    EXPECT(operation.reports == 0, "%u reports that nobody wanted", operation.reports);
    expect_snapshots(&daemon, arguments->domain, "one three");

    operation_prepare(&operation, &daemon, "delete one and its children", CALLBACKS);
    rc = libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "one",
                                      LIBXL_DOMAIN_SNAPSHOT_DELETE_CHILDREN, operation.ao,
                                      operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "delete one and its children");
    expect_snapshots(&daemon, arguments->domain, "");
    daemon_close(&daemon);
}

/* Waiting calls
 * ============= */

/* Takes the reports that a call queues while another thread waits in it. */
struct taker {
    const struct operation *operation;
    sem_t ended;
    unsigned int reports;
};

static void *take_reports(void *data)
{
    struct taker *taker = data;
    const struct operation *operation = taker->operation;
    struct daemon *daemon = operation->daemon;

    while (sem_trywait(&taker->ended)) {
        struct pollfd fd = {.fd = daemon->ext_fd, .events = POLLIN};
        libxl_ext_event *event;

        poll(&fd, 1, 100);
        if (libxl_ext_event_check(daemon->ctx, &event))
            continue;
        EXPECT(event->type == LIBXL_EXT_EVENT_TYPE_OPERATION_PROGRESS, "type %d", event->type);
        EXPECT(event->for_user == (uintptr_t)operation, "another's for_event");
        libxl_ext_event_free(daemon->ctx, event);
        taker->reports++;
    }
    return NULL;
}

static void run_blocking(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    libxl_domain_snapshot snapshot;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    operation_prepare(&operation, &daemon, "create without a name", BLOCKING);
    int rc = libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0, operation.ao,
                                          operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "create without a name");
    EXPECT(operation.reports > 0, "no progress was reported");
    EXPECT(snapshot.name && strtoull(snapshot.name, NULL, 10) == snapshot.creation_time,
           "it is called %s", snapshot.name);
    expect_snapshots(&daemon, arguments->domain, snapshot.name);

    /* The name that V6 prints for it, and one of its flags. A call that waits may also queue its reports,
     * for another thread; those that are left when it returns are dropped. */
    struct taker taker = {.operation = &operation};
    pthread_t thread;
    operation_prepare(&operation, &daemon, "disk revert", EVENTS);
    sem_init(&taker.ended, 0, 0);
    EXPECT(pthread_create(&thread, NULL, take_reports, &taker) == 0, "no thread");
    EXPECT_RC(libxl_disk_snapshot_revert(daemon.ctx, arguments->domain, snapshot.name,
                                         LIBXL_DOMAIN_SNAPSHOT_REVERT_RUNNING, NULL,
                                         operation.progress),
              0, "disk revert");
    expect_quiet(&daemon);
    sem_post(&taker.ended);
    pthread_join(thread, NULL);
    sem_destroy(&taker.ended);
    operation_forget(&operation);
    EXPECT(taker.reports > 0, "no report was queued");

    operation_prepare(&operation, &daemon, "delete", BLOCKING);
    rc = libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, snapshot.name, 0, operation.ao,
                                      operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "delete");
    EXPECT(operation.reports > 0, "no progress was reported");
    expect_snapshots(&daemon, arguments->domain, "");
    libxl_domain_snapshot_dispose(&snapshot);

    /* And an asynchronous one can be waited for without a loop. */
    libxl_ext_event *event;
    libxl_asyncop_how how = {.u.for_event = 7};
    libxl_domain_snapshot_init(&snapshot);
    EXPECT_RC(libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0, &how, NULL), 0,
              "create to be waited for");
    EXPECT_RC(libxl_ext_event_wait(daemon.ctx, &event), 0, "libxl_ext_event_wait");
    EXPECT(event->type == LIBXL_EXT_EVENT_TYPE_OPERATION_COMPLETE && event->for_user == 7,
           "event of type %d for %llu", event->type, (unsigned long long)event->for_user);
    EXPECT_RC(event->u.operation_complete.rc, 0, "create to be waited for");
    libxl_ext_event_free(daemon.ctx, event);

    /* If nothing but a callback is to come, it is made, and there is no event. */
    operation_prepare(&operation, &daemon, "delete to be waited for", CALLBACKS);
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, snapshot.name, 0,
                                           operation.ao, operation.progress),
              0, "delete to be waited for");
    daemon.in_check = true;
    rc = libxl_ext_event_wait(daemon.ctx, &event);
    daemon.in_check = false;
    EXPECT_RC(rc, ERROR_NOT_READY, "libxl_ext_event_wait");
    EXPECT(operation.complete, "it did not call back");
    EXPECT_RC(operation.rc, 0, "delete to be waited for");
    libxl_domain_snapshot_dispose(&snapshot);
    expect_snapshots(&daemon, arguments->domain, "");
    expect_quiet(&daemon);
    EXPECT(!logger_has(daemon.logger, ""), "success is quiet");
    daemon_close(&daemon);
}

/* Aborting
 * ======== */

static void abort_at_report(struct operation *operation, const libxl_ext_event *event)
{
    libxl_ctx *ctx = operation->daemon->ctx;

    (void)event;
    if (operation->reports > 1)
        return;
    EXPECT_RC(libxl_ext_ao_abort(ctx, &operation->how), 0, "abort");
    EXPECT_RC(libxl_ext_ao_abort(ctx, &operation->how), ERROR_ABORTED, "abort again");
}

static void expect_aborted(struct operation *operation, const char *domain, enum form form)
{
    struct daemon *daemon = operation->daemon;

    EXPECT_RC(create(operation, domain, "never"), ERROR_ABORTED, operation->what);
    EXPECT(operation->reports > 0, "it was aborted before there was a report");
    EXPECT_RC(libxl_ext_ao_abort(daemon->ctx, form == BLOCKING ? NULL : &operation->how),
              ERROR_NOTFOUND, "abort after the end");
    expect_snapshots(daemon, domain, "");
    expect_quiet(daemon);
}

struct aborter {
    libxl_ctx *ctx;
    sem_t begun;
};

static void *abort_the_waiting_call(void *data)
{
    struct aborter *aborter = data;

    while (sem_wait(&aborter->begun) && errno == EINTR) { }
    EXPECT_RC(libxl_ext_ao_abort(aborter->ctx, NULL), 0, "abort from another thread");
    return NULL;
}

static void tell_the_aborter(struct operation *operation, const libxl_ext_event *event)
{
    struct aborter *aborter = operation->for_on_report;

    (void)event;
    if (operation->reports == 1)
        sem_post(&aborter->begun);
}

static void run_abort(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    struct aborter aborter;
    pthread_t thread;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    operation_prepare(&operation, &daemon, "create aborted in a callback", CALLBACKS);
    EXPECT_RC(libxl_ext_ao_abort(daemon.ctx, &operation.how), ERROR_NOTFOUND, "abort of nothing");
    operation.on_report = abort_at_report;
    expect_aborted(&operation, arguments->domain, CALLBACKS);

    operation_prepare(&operation, &daemon, "create aborted in the loop", EVENTS);
    operation.on_report = abort_at_report;
    expect_aborted(&operation, arguments->domain, EVENTS);

    aborter.ctx = daemon.ctx;
    sem_init(&aborter.begun, 0, 0);
    EXPECT(pthread_create(&thread, NULL, abort_the_waiting_call, &aborter) == 0, "no thread");
    operation_prepare(&operation, &daemon, "create aborted by another thread", BLOCKING);
    operation.on_report = tell_the_aborter;
    operation.for_on_report = &aborter;
    EXPECT_RC(create(&operation, arguments->domain, "never"), ERROR_ABORTED, operation.what);
    pthread_join(thread, NULL);
    sem_destroy(&aborter.begun);
    EXPECT_RC(libxl_ext_ao_abort(daemon.ctx, NULL), ERROR_NOTFOUND, "abort after the end");
    expect_snapshots(&daemon, arguments->domain, "");
    expect_quiet(&daemon);

    operation_prepare(&operation, &daemon, "create kept", BLOCKING);
    EXPECT_RC(create(&operation, arguments->domain, "kept"), 0, "create kept");
    operation_prepare(&operation, &daemon, "revert aborted in a callback", CALLBACKS);
    operation.on_report = abort_at_report;
    int rc = libxl_domain_snapshot_revert(daemon.ctx, arguments->domain, "kept", 0, operation.ao,
                                          operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), ERROR_ABORTED, operation.what);
    expect_snapshots(&daemon, arguments->domain, "kept");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "kept", 0, NULL, NULL), 0,
              "delete");
    daemon_close(&daemon);
}

/* Two domains in one loop
 * ======================= */

static void run_both(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation first, second, third;
    libxl_domain_snapshot snapshots[3];

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    for (int i = 0; i < 3; i++)
        libxl_domain_snapshot_init(&snapshots[i]);
    operation_prepare(&first, &daemon, "create of the first", EVENTS);
    operation_wait_report(&first,
                          libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshots[0], 0,
                                                       first.ao, first.progress));
    /* There is only one operation at a time for each domain. */
    operation_prepare(&third, &daemon, "create too many", EVENTS);
    int rc = libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshots[2], 0, third.ao,
                                          third.progress);
    EXPECT_RC(operation_finish(&third, rc), ERROR_LOCK_FAIL, third.what);
    /* But any number for several. Which of them is aborted is told by its ao_how. */
    operation_prepare(&second, &daemon, "create of the second", EVENTS);
    second.on_report = abort_at_report;
    rc = libxl_domain_snapshot_create(daemon.ctx, arguments->other, &snapshots[1], 0, second.ao,
                                      second.progress);
    EXPECT_RC(operation_finish(&second, rc), ERROR_ABORTED, second.what);
    EXPECT_RC(operation_finish(&first, 0), 0, first.what);
    expect_snapshots(&daemon, arguments->domain, snapshots[0].name);
    expect_snapshots(&daemon, arguments->other, "");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, snapshots[0].name, 0, NULL,
                                           NULL),
              0, "delete");
    for (int i = 0; i < 3; i++)
        libxl_domain_snapshot_dispose(&snapshots[i]);
    daemon_close(&daemon);
}

/* Releasing a ctx while an operation of it is under way
 * ===================================================== */

static void run_release(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    libxl_domain_snapshot snapshot;
    struct files before = count_files();

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    operation_prepare(&operation, &daemon, "create that is not waited for", CALLBACKS);
    operation_wait_report(&operation,
                          libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0,
                                                       operation.ao, operation.progress));
    say(daemon.name, "release");
    libxl_ext_ctx_release(daemon.ctx);
    libxl_ext_ctx_release(daemon.ctx);
    EXPECT(!operation.complete, "it called back");
    operation_forget(&operation);
    libxl_domain_snapshot_dispose(&snapshot);

    /* The ctx may be used again, as if it was new. */
    if (arguments->store)
        EXPECT_RC(libxl_ext_set_store(daemon.ctx, arguments->store), 0, "libxl_ext_set_store");
    daemon.ext_fd = libxl_ext_event_fd(daemon.ctx);
    expect_snapshots(&daemon, arguments->domain, "");
    expect_quiet(&daemon);
    daemon_close(&daemon);
    struct files after = count_files();
    EXPECT(after.open == before.open, "%u files are open, and were %u before", after.open,
           before.open);
}

/* Memory elsewhere, and none
 * ========================== */

/* The disk xvda, externally and in a layer at the path, or internally. */
static void choose(libxl_domain_snapshot *snapshot, const char *layer)
{
    libxl_disk_snapshot *disk = calloc(1, sizeof(*disk));

    libxl_disk_snapshot_init(disk);
    disk->disk.vdev = strdup("xvda");
    if (layer) {
        disk->external = true;
        disk->external_sn.pdev_path = strdup(layer);
    }
    snapshot->num_disks = 1;
    snapshot->disks = disk;
}

static void run_file(const struct arguments *arguments)
{
    struct daemon daemon;
    libxl_domain_snapshot snapshot;
    char file[1024], layer[1024];

    snprintf(file, sizeof(file), "%s.memory", arguments->store);
    snprintf(layer, sizeof(layer), "%s.layer", arguments->store);
    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup("filed");
    snapshot.memory_file = strdup(file);
    choose(&snapshot, layer);
    EXPECT_RC(libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0, NULL, NULL),
              0, "create filed");
    EXPECT(snapshot.memory && strcmp(snapshot.memory_file, file) == 0, "%s", snapshot.memory_file);
    EXPECT(access(file, F_OK) == 0, "%s: %s", file, strerror(errno));
    EXPECT(snapshot.num_disks == 1 && snapshot.disks[0].external &&
               strcmp(snapshot.disks[0].external_sn.pdev_path, layer) == 0,
           "the disk does not go on in %s", layer);
    EXPECT(access(layer, F_OK) == 0, "%s: %s", layer, strerror(errno));
    EXPECT_RC(libxl_domain_snapshot_revert(daemon.ctx, arguments->domain, "filed", 0, NULL, NULL), 0,
              "revert to filed");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "filed", 0, NULL, NULL), 0,
              "delete filed");
    EXPECT(access(file, F_OK) != 0, "%s is there still", file);
    EXPECT(access(layer, F_OK) != 0, "%s is there still", layer);
    libxl_domain_snapshot_dispose(&snapshot);
    daemon_close(&daemon);
}

/* A snapshot of one disk, and of disks that cannot be meant. */
static void expect_a_choice(struct daemon *daemon, const struct arguments *arguments)
{
    const unsigned int disk_only = LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    libxl_domain_snapshot snapshot;
    libxl_disk_snapshot *disk;

    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup("chosen");
    choose(&snapshot, NULL);
    disk = snapshot.disks;
    free(disk->disk.vdev);
    disk->disk.vdev = NULL;
    EXPECT_RC(libxl_domain_snapshot_create(daemon->ctx, arguments->domain, &snapshot, disk_only, NULL,
                                           NULL),
              ERROR_INVAL, "create of a disk without a name");
    EXPECT(logger_has_error(daemon->logger, "vdev"), "the refusal does not say what is missing");
    logger_clear(daemon->logger);
    disk->disk.vdev = strdup("xvdz");
    EXPECT_RC(libxl_domain_snapshot_create(daemon->ctx, arguments->domain, &snapshot, disk_only, NULL,
                                           NULL),
              ERROR_INVAL, "create of a disk that is not there");
    EXPECT(logger_has_error(daemon->logger, "xvdz"), "the refusal does not name the disk");
    logger_clear(daemon->logger);
    free(disk->disk.vdev);
    disk->disk.vdev = strdup("xvda");
    EXPECT_RC(libxl_domain_snapshot_create(daemon->ctx, arguments->domain, &snapshot, disk_only, NULL,
                                           NULL),
              0, "create chosen");
    EXPECT(snapshot.num_disks == 1, "%d disks", snapshot.num_disks);
    EXPECT(!snapshot.disks[0].external, "it is external");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon->ctx, arguments->domain, "chosen", 0, NULL, NULL), 0,
              "delete chosen");
    libxl_domain_snapshot_dispose(&snapshot);
}

/* The domain is off, and a snapshot of it is kept. */
static void run_disk_only(const struct arguments *arguments)
{
    const unsigned int disk_only = LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    struct daemon daemon;
    libxl_domain_snapshot snapshot;
    uint32_t domid;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup("off");
    EXPECT_RC(libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, disk_only, NULL,
                                           NULL),
              0, "create off");
    EXPECT(!snapshot.memory && !snapshot.memory_file, "it has a memory");
    EXPECT(snapshot.num_disks > 0, "it has no disks");
    EXPECT_RC(libxl_domain_snapshot_revert(daemon.ctx, arguments->domain, "off",
                                           LIBXL_DOMAIN_SNAPSHOT_REVERT_RUNNING, NULL, NULL),
              ERROR_NI, "revert to off, running");
    EXPECT(logger_has_error(daemon.logger, "off"), "the refusal says nothing");
    logger_clear(daemon.logger);
    EXPECT_RC(libxl_domain_snapshot_revert(daemon.ctx, arguments->domain, "off", 0, NULL, NULL), 0,
              "revert to off");
    EXPECT(libxl_name_to_domid(daemon.ctx, arguments->domain, &domid), "it is domain %u", domid);
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "off", 0, NULL, NULL), 0,
              "delete off");
    libxl_domain_snapshot_dispose(&snapshot);
    expect_a_choice(&daemon, arguments);
    daemon_close(&daemon);
}

/* Refusals
 * ======== */

typedef int snapshot_call(libxl_ctx *ctx, const char *domain, const char *snapshot, unsigned int flags,
                          const libxl_asyncop_how *ao_how,
                          const libxl_ext_asyncprogress_how *progress);

/* The operation that is being refused does not touch the caller's snapshot. */
static int call_create(libxl_ctx *ctx, const char *domain, const char *name, unsigned int flags,
                       const libxl_asyncop_how *ao_how, const libxl_ext_asyncprogress_how *progress)
{
    static libxl_domain_snapshot snapshot;

    libxl_domain_snapshot_init(&snapshot);
    /* Until an asynchronous call ends, the snapshot is the library's to write to; see refuse. */
    snapshot.name = (char *)(uintptr_t)name;
    return libxl_domain_snapshot_create(ctx, domain, &snapshot, flags, ao_how, progress);
}

static const struct call {
    const char *name;
    snapshot_call *call;
} calls[] = {
    {"create", call_create},
    {"delete", libxl_domain_snapshot_delete},
    {"revert", libxl_domain_snapshot_revert},
    {"disk revert", libxl_disk_snapshot_revert},
};

enum { CALLS = sizeof(calls) / sizeof(calls[0]) };

/* The call is refused in each form, and the logger is told why. */
static void refuse(struct daemon *daemon, const struct call *call, const char *domain,
                   const char *snapshot, unsigned int flags, int wanted, const char *why)
{
    static const enum form forms[] = {BLOCKING, EVENTS, CALLBACKS};

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        struct operation operation;

        operation_prepare(&operation, daemon, call->name, forms[i]);
        int rc = call->call(daemon->ctx, domain, snapshot, flags, operation.ao, operation.progress);
        EXPECT_RC(operation_finish(&operation, rc), wanted, call->name);
        EXPECT(logger_has_error(daemon->logger, why), "the refusal of %s says nothing of '%s'",
               call->name, why);
        logger_clear(daemon->logger);
        expect_quiet(daemon);
    }
}

static void run_errors(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    const char *domain = arguments->domain;
    libxl_domain_snapshot *snapshots = NULL;
    int count = 0;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    expect_quiet(&daemon);
    for (int i = 0; i < CALLS; i++) {
        refuse(&daemon, &calls[i], domain, "missing", 1u << 31, ERROR_INVAL, "flag");
        refuse(&daemon, &calls[i], domain, "missing", 1u << 3, ERROR_INVAL, "flag");
        refuse(&daemon, &calls[i], "no-such-domain", "missing", 0, ERROR_DOMAIN_NOTFOUND,
               "no-such-domain");
        if (calls[i].call != call_create)
            refuse(&daemon, &calls[i], domain, "missing", 0, ERROR_NOTFOUND, "missing");
    }
    EXPECT_RC(libxl_domain_snapshot_list(daemon.ctx, "no-such-domain", &snapshots, &count),
              ERROR_DOMAIN_NOTFOUND, "list");
    EXPECT(logger_has_error(daemon.logger, "no-such-domain"), "the refusal of list says nothing");
    logger_clear(daemon.logger);

    refuse(&daemon, &calls[0], domain, "no/name", 0, ERROR_INVAL, "no/name");
    refuse(&daemon, &calls[0], domain, "running", LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
           ERROR_NOT_READY, "is running");
    refuse(&daemon, &calls[0], domain, "live",
           LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | LIBXL_DOMAIN_SNAPSHOT_CREATE_LIVE, ERROR_INVAL,
           "DISK_ONLY");
    operation_prepare(&operation, &daemon, "create taken", EVENTS);
    EXPECT_RC(create(&operation, domain, "taken"), 0, "create taken");
    refuse(&daemon, &calls[0], domain, "taken", 0, ERROR_INVAL, "taken");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, domain, "taken", 0, NULL, NULL), 0, "delete");

    EXPECT_RC(libxl_ext_set_store(daemon.ctx, "not/absolute"), ERROR_INVAL, "libxl_ext_set_store");
    libxl_ext_event_free(daemon.ctx, NULL);
    libxl_domain_snapshot_list_free(NULL, 0);
    daemon_close(&daemon);
}

const struct scenario scenarios[] = {
    {"create", "one, two and three, heard of in three ways", 1, run_create},
    {"revert", "to one, while libxl watches the domain", 1, run_revert},
    {"delete", "two, then one with its children", 1, run_delete},
    {"blocking", "calls that wait", 1, run_blocking},
    {"abort", "in a callback, in the loop and from another thread", 1, run_abort},
    {"both", "two domains in one loop", 2, run_both},
    {"release", "of a ctx in the middle of an operation", 1, run_release},
    {"file", "memory in a file of the caller's", 1, run_file},
    {"disk-only", "of a domain that is off", 1, run_disk_only},
    {"errors", "what is refused, and how", 1, run_errors},
    {NULL, NULL, 0, NULL},
};

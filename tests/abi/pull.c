/*
 * Pulls, seen from the loop. Both disks of the domain stand on templates. Of the first one a pull goes on, which takes
 * long: it is aborted and begun anew. The second is pulled by increments.
 */
#include "daemon.h"

#include <string.h>

/* What is heard of the end of a pull. */
struct end {
    bool heard;
    libxl_block_pull_status status;
    char path[32];
    bool reason;
};

static void on_end(libxl_ctx *ctx, const libxl_ext_event *event, void *for_callback)
{
    struct end *end = for_callback;

    (void)ctx;
    EXPECT(event->type == LIBXL_EXT_EVENT_TYPE_BLOCK_PULL, "an event of type %d", event->type);
    EXPECT(event->for_user == 77, "for_user is %llu", (unsigned long long)event->for_user);
    EXPECT(event->u.block_pull.domain && event->u.block_pull.path, "it does not say of what");
    EXPECT(!end->heard, "it was told twice");
    end->heard = true;
    end->status = event->u.block_pull.status;
    end->reason = event->u.block_pull.reason != NULL;
    strncpy(end->path, event->u.block_pull.path, sizeof(end->path) - 1);
}

static void watch(struct daemon *daemon, const char *domain, const char *path, struct end *end)
{
    libxl_ext_asyncprogress_how how = {.callback = on_end, .for_event = 77, .for_callback = end};

    memset(end, 0, sizeof(*end));
    EXPECT_RC(libxl_ext_evenable_block_pull(daemon->ctx, domain, path, 0, &how), 0, "evenable");
}

static void unwatch(struct daemon *daemon, struct end *end)
{
    libxl_ext_asyncprogress_how how = {.callback = on_end, .for_event = 77, .for_callback = end};

    EXPECT_RC(libxl_ext_evdisable_block_pull(daemon->ctx, &how), 0, "evdisable");
}

static void expect_end(struct daemon *daemon, struct end *end, const char *path,
                       libxl_block_pull_status status)
{
    while (!end->heard)
        daemon_turn(daemon, LIMIT * 1000);
    EXPECT(end->status == status, "the status is %s", libxl_block_pull_status_to_string(end->status));
    EXPECT(!strcmp(end->path, path), "it is of %s", end->path);
    EXPECT(end->reason == (status == LIBXL_BLOCK_PULL_STATUS_FAILED), "reason: %d", end->reason);
}

static libxl_domain_block_pull_info info_of(struct daemon *daemon, const char *domain,
                                            const char *path)
{
    libxl_domain_block_pull_info info;

    libxl_domain_block_pull_info_init(&info);
    EXPECT_RC(libxl_domain_get_block_pull_info(daemon->ctx, domain, path, &info, 0), 0, "info");
    EXPECT(info.cur <= info.end && info.end > 0, "%llu of %llu", (unsigned long long)info.cur,
           (unsigned long long)info.end);
    return info;
}

static void expect_refusals(struct daemon *daemon, const char *domain)
{
    libxl_domain_block_pull_cursor cursor = 0;
    libxl_domain_block_pull_info info;
    libxl_ext_asyncprogress_how how = {.callback = on_end};
    int rc;

    libxl_domain_block_pull_info_init(&info);
    for (int bit = 1; bit < 32; bit++) {
        rc = libxl_domain_block_pull(daemon->ctx, domain, "xvda", &cursor, 1u << bit, NULL, NULL);
        EXPECT_RC(rc, ERROR_INVAL, "pull with a flag");
    }
    for (int bit = 0; bit < 32; bit++) {
        unsigned int flags = 1u << bit;

        rc = libxl_domain_block_pull_abort(daemon->ctx, domain, "xvda", flags);
        EXPECT_RC(rc, ERROR_INVAL, "abort with a flag");
        rc = libxl_domain_get_block_pull_info(daemon->ctx, domain, "xvda", &info, flags);
        EXPECT_RC(rc, ERROR_INVAL, "info with a flag");
        rc = libxl_ext_evenable_block_pull(daemon->ctx, domain, "xvda", flags, &how);
        EXPECT_RC(rc, ERROR_INVAL, "evenable with a flag");
    }
    rc = libxl_domain_block_pull(daemon->ctx, domain, "xvda", NULL, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_INVAL, "an increment without a cursor");
    rc = libxl_domain_block_pull(daemon->ctx, domain, NULL, &cursor, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_INVAL, "pull of no disk");
    rc = libxl_domain_block_pull(daemon->ctx, domain, "xvdz", &cursor, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_INVAL, "pull of a disk that there is not");
    rc = libxl_domain_block_pull(daemon->ctx, "no-such-domain", "xvda", &cursor, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_DOMAIN_NOTFOUND, "pull of a domain that there is not");
    rc = libxl_domain_get_block_pull_info(daemon->ctx, domain, "xvdb", &info, 0);
    EXPECT_RC(rc, ERROR_NOTFOUND, "info of no pull");
    EXPECT_RC(libxl_ext_evenable_block_pull(daemon->ctx, domain, "xvda", 0, NULL), ERROR_INVAL,
              "evenable for nobody");
    EXPECT_RC(libxl_ext_evdisable_block_pull(daemon->ctx, NULL), ERROR_INVAL, "evdisable for nobody");
    EXPECT_RC(libxl_ext_evdisable_block_pull(daemon->ctx, &how), ERROR_NOTFOUND,
              "evdisable of what nobody asked for");
    EXPECT(cursor == 0 && info.end == 0, "a call that was refused wrote something");
    logger_clear(daemon->logger);
}

static void run_pull(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    struct end first, late, second, aborted, never;
    const char *domain = arguments->domain;
    const unsigned int continuous = LIBXL_DOMAIN_BLOCK_PULL_CONTINUOUS;
    libxl_domain_block_pull_cursor cursor = 0, before;
    libxl_domain_block_pull_info info;
    int rc, calls = 0;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    expect_refusals(&daemon, domain);

    /* Somebody else has begun it, slowly. */
    watch(&daemon, domain, "xvda", &aborted);
    watch(&daemon, domain, "xvda", &never);
    unwatch(&daemon, &never);
    info = info_of(&daemon, domain, "xvda");
    rc = libxl_domain_block_pull(daemon.ctx, domain, "xvda", &cursor, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_NOT_READY, "an increment while all of it is pulled");
    logger_clear(daemon.logger);
    EXPECT_RC(libxl_domain_block_pull_abort(daemon.ctx, domain, "xvda", 0), 0, "abort");
    expect_end(&daemon, &aborted, "xvda", LIBXL_BLOCK_PULL_STATUS_ABORTED);

    operation_prepare(&operation, &daemon, "pull", CALLBACKS);
    rc = libxl_domain_block_pull(daemon.ctx, domain, "xvda", NULL, continuous, operation.ao,
                                 operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "pull");
    watch(&daemon, domain, "xvda", &first);
    expect_end(&daemon, &first, "xvda", LIBXL_BLOCK_PULL_STATUS_COMPLETED);
    watch(&daemon, domain, "xvda", &late);
    expect_end(&daemon, &late, "xvda", LIBXL_BLOCK_PULL_STATUS_COMPLETED);
    info = info_of(&daemon, domain, "xvda");
    EXPECT(info.cur == info.end, "it ended at %llu", (unsigned long long)info.cur);

    watch(&daemon, domain, "xvdb", &second);
    do {
        before = cursor;
        operation_prepare(&operation, &daemon, "increment", calls % 2 ? BLOCKING : MIXED);
        rc = libxl_domain_block_pull(daemon.ctx, domain, "xvdb", &cursor, 0, operation.ao,
                                     operation.progress);
        EXPECT_RC(operation_finish(&operation, rc), 0, "increment");
        EXPECT(cursor > before, "the cursor does not move");
        rc = libxl_domain_block_pull(daemon.ctx, domain, "xvdb", &before, 0, NULL, NULL);
        EXPECT_RC(rc, ERROR_NOT_READY, "an old cursor");
        logger_clear(daemon.logger);
        info = info_of(&daemon, domain, "xvdb");
        EXPECT(info.cur == cursor, "the info does not tell the cursor");
        calls++;
    } while (cursor < info.end);
    EXPECT(calls > 1, "%d calls", calls);
    expect_end(&daemon, &second, "xvdb", LIBXL_BLOCK_PULL_STATUS_COMPLETED);
    before = cursor;
    rc = libxl_domain_block_pull(daemon.ctx, domain, "xvdb", &cursor, 0, NULL, NULL);
    EXPECT_RC(rc, 0, "one call more");
    EXPECT(cursor == before, "the cursor moves beyond the end");
    EXPECT(!never.heard, "what was disabled was told");
    expect_quiet(&daemon);
    daemon_close(&daemon);
}

const struct scenario pull_scenarios[] = {
    {"pull", "pulls of both disks of a domain", 1, run_pull},
    {NULL, NULL, 0, NULL},
};

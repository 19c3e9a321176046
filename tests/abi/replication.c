/*
 * Replication as an application sees it: operations in C, which note how they are called and fail when they
 * are told to. Runs without Xen, with the ctx of ctx.c.
 */
#include <libxl_ext.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Both are the application's own; the library has no such codes. */
enum { OWN_ERROR = -4711, NO_ERROR_CODE = 3 };

static int differences;

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            differences++;                                                        \
        }                                                                         \
    } while (0)

#define CHECK_RC(call, wanted)                                                    \
    do {                                                                          \
        int rc_ = (call);                                                         \
        if (rc_ != (wanted)) {                                                    \
            fprintf(stderr, "%s:%d: %s is %d, not %d\n", __FILE__, __LINE__, #call, rc_, (wanted)); \
            differences++;                                                        \
        }                                                                         \
    } while (0)

/* The logger
 * ========== */

static char errors[8192]; /* what was logged as an error since it was cleared */

static void remember(xentoollog_logger *logger, xentoollog_level level, int errnoval,
                     const char *context, const char *format, va_list arguments)
{
    size_t used = strlen(errors);

    (void)logger, (void)errnoval, (void)context;
    if (level >= XTL_ERROR)
        vsnprintf(errors + used, sizeof(errors) - used, format, arguments);
}

static void forget_nothing(xentoollog_logger *logger)
{
    (void)logger;
}

static xentoollog_logger logger = { .vmessage = remember, .destroy = forget_nothing };

static bool was_logged(const char *text)
{
    bool found = strstr(errors, text);

    if (!found)
        fprintf(stderr, "logged was: %s\n", errors);
    errors[0] = '\0';
    return found;
}

/* The operations
 * ============== */

static char calls[1024]; /* such as "a.start(1) b.start(1) " */

struct disk {
    char name;
    libxl_ctx *ctx;
    int start, stop, checkpoint, get_error; /* what they return */
    void (*within)(struct disk *disk);      /* called by each of them, if not NULL */
};

static void note(struct disk *disk, libxl_ctx *ctx, const char *what, int argument)
{
    size_t used = strlen(calls);

    CHECK(ctx == disk->ctx);
    snprintf(calls + used, sizeof(calls) - used, "%c.%s(%d) ", disk->name, what, argument);
    if (disk->within)
        disk->within(disk);
}

static int start(libxl_ctx *ctx, void *opaque, libxl_replication_mode mode)
{
    struct disk *disk = opaque;

    note(disk, ctx, "start", (int)mode);
    return disk->start;
}

static int stop(libxl_ctx *ctx, void *opaque, bool failover)
{
    struct disk *disk = opaque;

    note(disk, ctx, "stop", failover);
    return disk->stop;
}

static int checkpoint(libxl_ctx *ctx, void *opaque)
{
    struct disk *disk = opaque;

    note(disk, ctx, "checkpoint", 0);
    return disk->checkpoint;
}

static int get_error(libxl_ctx *ctx, void *opaque)
{
    struct disk *disk = opaque;

    note(disk, ctx, "get_error", 0);
    return disk->get_error;
}

static const libxl_replication_ops all_ops = {
    .start = start,
    .stop = stop,
    .checkpoint = checkpoint,
    .get_error = get_error,
};

static bool were_called(const char *wanted)
{
    bool same = !strcmp(calls, wanted);

    if (!same)
        fprintf(stderr, "called were: %s\n", calls);
    calls[0] = '\0';
    return same;
}

/* A ctx with the disks a, b and c
 * =============================== */

enum { DISKS = 3 };

struct set {
    libxl_ctx *ctx;
    struct disk disks[DISKS];
    libxl_replication_state *states[DISKS];
};

static void set_open(struct set *set)
{
    memset(set, 0, sizeof(*set));
    if (libxl_ctx_alloc(&set->ctx, LIBXL_VERSION, 0, &logger)) {
        fprintf(stderr, "there is no ctx\n");
        exit(1);
    }
    for (int i = 0; i < DISKS; i++) {
        /* The library copies it. */
        libxl_replication_ops ops = all_ops;

        set->disks[i].name = (char)('a' + i);
        set->disks[i].ctx = set->ctx;
        CHECK_RC(libxl_replication_new(set->ctx, &ops, &set->disks[i], &set->states[i]), 0);
        CHECK(set->states[i]);
        memset(&ops, 0, sizeof(ops));
    }
    CHECK(were_called(""));
}

static void set_close(struct set *set)
{
    libxl_ext_ctx_release(set->ctx);
    CHECK(were_called(""));
    libxl_ctx_free(set->ctx);
    CHECK(!errors[0]);
    errors[0] = '\0';
}

static void in_order(void)
{
    struct set set;

    set_open(&set);
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_SECONDARY), 0);
    CHECK(were_called("a.start(2) b.start(2) c.start(2) "));
    CHECK_RC(libxl_replication_do_checkpoint_all(set.ctx), 0);
    CHECK(were_called("a.checkpoint(0) b.checkpoint(0) c.checkpoint(0) "));
    CHECK_RC(libxl_replication_get_error_all(set.ctx), 0);
    CHECK(were_called("a.get_error(0) b.get_error(0) c.get_error(0) "));
    CHECK_RC(libxl_replication_stop_all(set.ctx, false), 0);
    CHECK(were_called("a.stop(0) b.stop(0) c.stop(0) "));
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), 0);
    CHECK(were_called("a.start(1) b.start(1) c.start(1) "));
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), 0);
    CHECK(were_called("a.stop(1) b.stop(1) c.stop(1) "));
    set_close(&set);
}

static void first_error(void)
{
    struct set set;

    set_open(&set);
    set.disks[2].start = OWN_ERROR;
    set.disks[1].stop = ERROR_TIMEDOUT;
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), OWN_ERROR);
    CHECK(were_called("a.start(1) b.start(1) c.start(1) b.stop(0) a.stop(0) "));
    CHECK(was_logged("the application's start returned -4711"));
    /* What was not taken back is stopped by the next stop, and there is no failover of a part. */
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), ERROR_NOT_READY);
    CHECK(was_logged("without failover"));
    set.disks[1].stop = 0;
    CHECK_RC(libxl_replication_stop_all(set.ctx, false), 0);
    CHECK(were_called("b.stop(0) "));

    set.disks[2].start = NO_ERROR_CODE;
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), ERROR_FAIL);
    CHECK(were_called("a.start(1) b.start(1) c.start(1) b.stop(0) a.stop(0) "));
    CHECK(was_logged("neither 0 nor an ERROR_*"));
    set.disks[2].start = 0;
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), 0);
    CHECK(were_called("a.start(1) b.start(1) c.start(1) "));

    set.disks[1].checkpoint = ERROR_BUFFERFULL;
    set.disks[2].checkpoint = OWN_ERROR;
    CHECK_RC(libxl_replication_do_checkpoint_all(set.ctx), ERROR_BUFFERFULL);
    CHECK(were_called("a.checkpoint(0) b.checkpoint(0) "));
    CHECK(was_logged("checkpoint returned"));
    set.disks[0].get_error = OWN_ERROR;
    CHECK_RC(libxl_replication_get_error_all(set.ctx), OWN_ERROR);
    CHECK(were_called("a.get_error(0) "));
    CHECK(was_logged("get_error returned -4711"));
    set.disks[0].get_error = 0;

    set.disks[0].stop = OWN_ERROR;
    set.disks[1].stop = ERROR_TIMEDOUT;
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), OWN_ERROR);
    CHECK(were_called("a.stop(1) b.stop(1) c.stop(1) "));
    CHECK(was_logged("others failed too"));
    CHECK_RC(libxl_replication_remove(set.ctx, set.states[0]), 0);
    set.disks[1].stop = 0;
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), 0);
    CHECK(were_called("b.stop(1) "));
    CHECK_RC(libxl_replication_get_error_all(set.ctx), 0);
    CHECK(were_called("b.get_error(0) c.get_error(0) "));
    set_close(&set);
}

static void misuse(void)
{
    struct set set, other;
    libxl_replication_state *rs = NULL;
    struct disk late = { .name = 'd' };

    set_open(&set);
    set_open(&other);
    late.ctx = set.ctx;

    CHECK_RC(libxl_replication_new(NULL, &all_ops, &late, &rs), ERROR_INVAL);
    CHECK_RC(libxl_replication_new(set.ctx, NULL, &late, &rs), ERROR_INVAL);
    CHECK(was_logged("ops are NULL"));
    CHECK_RC(libxl_replication_new(set.ctx, &all_ops, &late, NULL), ERROR_INVAL);
    CHECK(was_logged("rs_out is NULL"));
    for (int member = 0; member < 4; member++) {
        static const char *const names[] = { "start", "stop", "checkpoint", "get_error" };
        libxl_replication_ops ops = all_ops;
        char text[64];

        if (member == 0)
            ops.start = NULL;
        else if (member == 1)
            ops.stop = NULL;
        else if (member == 2)
            ops.checkpoint = NULL;
        else
            ops.get_error = NULL;
        rs = set.states[0];
        CHECK_RC(libxl_replication_new(set.ctx, &ops, &late, &rs), ERROR_INVAL);
        CHECK(!rs);
        snprintf(text, sizeof(text), "the member %s of", names[member]);
        CHECK(was_logged(text));
    }

    CHECK_RC(libxl_replication_remove(set.ctx, NULL), ERROR_INVAL);
    CHECK(was_logged("is NULL"));
    CHECK_RC(libxl_replication_remove(set.ctx, other.states[0]), ERROR_INVAL);
    CHECK(was_logged("another ctx"));
    CHECK_RC(libxl_replication_remove(set.ctx, (libxl_replication_state *)(uintptr_t)-1), ERROR_INVAL);
    CHECK(was_logged("there is no replication 0xffff"));

    CHECK_RC(libxl_replication_do_checkpoint_all(set.ctx), ERROR_NOT_READY);
    CHECK(was_logged("is not running"));
    CHECK_RC(libxl_replication_get_error_all(set.ctx), ERROR_NOT_READY);
    CHECK_RC(libxl_replication_stop_all(set.ctx, false), ERROR_NOT_READY);
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), ERROR_NOT_READY);
    CHECK_RC(libxl_replication_start_all(set.ctx, 0), ERROR_INVAL);
    CHECK_RC(libxl_replication_start_all(set.ctx, (libxl_replication_mode)77), ERROR_INVAL);
    CHECK(was_logged("no such mode"));
    CHECK_RC(libxl_replication_start_all(NULL, LIBXL_REPLICATION_MODE_PRIMARY), ERROR_INVAL);
    CHECK(were_called(""));

    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), 0);
    CHECK(were_called("a.start(1) b.start(1) c.start(1) "));
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), ERROR_NOT_READY);
    CHECK_RC(libxl_replication_new(set.ctx, &all_ops, &late, &rs), ERROR_NOT_READY);
    CHECK(!rs);
    CHECK_RC(libxl_replication_remove(set.ctx, set.states[1]), ERROR_NOT_READY);
    CHECK(was_logged("stop replication first"));
    CHECK(were_called(""));

    CHECK_RC(libxl_replication_stop_all(set.ctx, true), 0);
    CHECK(were_called("a.stop(1) b.stop(1) c.stop(1) "));
    CHECK_RC(libxl_replication_stop_all(set.ctx, true), ERROR_NOT_READY);
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), ERROR_NOT_READY);
    CHECK(was_logged("failed over"));
    for (int i = 0; i < DISKS; i++) {
        CHECK_RC(libxl_replication_remove(set.ctx, set.states[i]), 0);
        CHECK_RC(libxl_replication_remove(set.ctx, set.states[i]), ERROR_INVAL);
    }
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), ERROR_NOT_READY);
    CHECK(was_logged("nothing is registered"));
    CHECK_RC(libxl_replication_new(set.ctx, &all_ops, &late, &rs), 0);
    CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), 0);
    CHECK(were_called("d.start(1) "));

    /* The other ctx has not noticed. */
    CHECK_RC(libxl_replication_start_all(other.ctx, LIBXL_REPLICATION_MODE_SECONDARY), 0);
    CHECK(were_called("a.start(2) b.start(2) c.start(2) "));
    set_close(&set);
    /* What the ctx had is forgotten with it, also what ran. */
    set_close(&other);
}

/* Whatever is called with the ctx of the operation is refused; with another one it is not. */
static void call_back(struct disk *disk)
{
    libxl_replication_state *rs;
    libxl_ctx *other;

    CHECK_RC(libxl_replication_new(disk->ctx, &all_ops, disk, &rs), ERROR_LOCK_FAIL);
    CHECK(was_logged("another call of replication is in progress"));
    CHECK_RC(libxl_replication_start_all(disk->ctx, LIBXL_REPLICATION_MODE_PRIMARY),
             ERROR_LOCK_FAIL);
    CHECK_RC(libxl_replication_do_checkpoint_all(disk->ctx), ERROR_LOCK_FAIL);
    CHECK_RC(libxl_replication_get_error_all(disk->ctx), ERROR_LOCK_FAIL);
    CHECK_RC(libxl_replication_stop_all(disk->ctx, true), ERROR_LOCK_FAIL);
    CHECK_RC(libxl_ext_set_store(disk->ctx, "/nowhere"), 0);

    if (libxl_ctx_alloc(&other, LIBXL_VERSION, 0, &logger))
        exit(1);
    CHECK_RC(libxl_replication_new(other, &all_ops, disk, &rs), 0);
    CHECK_RC(libxl_replication_remove(other, rs), 0);
    libxl_ext_ctx_release(other);
    libxl_ctx_free(other);
    errors[0] = '\0';
}

static void *ask_from_thread(void *ctx)
{
    CHECK_RC(libxl_replication_get_error_all(ctx), ERROR_LOCK_FAIL);
    return NULL;
}

static void call_on_thread(struct disk *disk)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, ask_from_thread, disk->ctx))
        exit(1);
    pthread_join(thread, NULL);
    errors[0] = '\0';
}

static void reentrancy(void)
{
    static void (*const within[])(struct disk *) = { call_back, call_on_thread };

    for (int i = 0; i < 2; i++) {
        struct set set;

        set_open(&set);
        set.disks[1].within = within[i];
        CHECK_RC(libxl_replication_start_all(set.ctx, LIBXL_REPLICATION_MODE_PRIMARY), 0);
        CHECK_RC(libxl_replication_do_checkpoint_all(set.ctx), 0);
        CHECK_RC(libxl_replication_get_error_all(set.ctx), 0);
        CHECK_RC(libxl_replication_stop_all(set.ctx, false), 0);
        CHECK(were_called("a.start(1) b.start(1) c.start(1) "
                          "a.checkpoint(0) b.checkpoint(0) c.checkpoint(0) "
                          "a.get_error(0) b.get_error(0) c.get_error(0) "
                          "a.stop(0) b.stop(0) c.stop(0) "));
        set_close(&set);
    }
}

int main(void)
{
    in_order();
    first_error();
    misuse();
    reentrancy();
    if (differences)
        fprintf(stderr, "%d differences\n", differences);
    return differences ? EXIT_FAILURE : EXIT_SUCCESS;
}

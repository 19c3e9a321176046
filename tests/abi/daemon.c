/*
 * The event loop of a program that uses libxl-ext beside libxl.
 *
 * libxl's events come by libxl_osevent_beforepoll and libxl_osevent_afterpoll, libxl-ext's by the one
 * file descriptor of libxl_ext_event_fd. Nothing else is needed: operations run elsewhere, and all that
 * is heard of them is heard in daemon_turn.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libxl_utils.h>

/* SIGCHLD
 * =======
 * In the mode libxl_sigchld_owner_mainloop the program takes the signal and reaps all children. A
 * handler can do little, so it writes a byte into a pipe that the loop polls.
 */

static int child_pipe[2] = {-1, -1};
static volatile sig_atomic_t children_signalled;

static void on_sigchld(int signal)
{
    int error = errno;

    (void)signal;
    children_signalled++;
    /* A pipe that is full will wake the loop as well. */
    if (write(child_pipe[1], "", 1) < 0) { }
    errno = error;
}

unsigned int sigchld_count(void)
{
    return (unsigned int)children_signalled;
}

static int catch_sigchld(void)
{
    if (child_pipe[0] < 0) {
        struct sigaction action = {.sa_handler = on_sigchld, .sa_flags = SA_RESTART};

        EXPECT(pipe2(child_pipe, O_CLOEXEC | O_NONBLOCK) == 0, "%s", strerror(errno));
        EXPECT(sigaction(SIGCHLD, &action, NULL) == 0, "%s", strerror(errno));
    }
    return child_pipe[0];
}

/* Every child that ends is libxl's or ours; libxl-ext has none. */
static void reap(struct daemon *daemon)
{
    char bytes[64];
    pid_t pid;
    int status;

    while (read(daemon->child_fd, bytes, sizeof(bytes)) > 0) { }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (libxl_childproc_reaped(daemon->ctx, pid, status) == 0)
            continue;
        EXPECT(pid == daemon->child, "process %d was reaped, which nobody here started", (int)pid);
        say(daemon->name, "our child %d ended with status %#x", (int)pid, (unsigned int)status);
        daemon->child = 0;
        daemon->child_status = status;
    }
}

/* The beginning and the end
 * ========================= */

/* libxl does not copy it. */
static const libxl_childproc_hooks we_reap = {.chldowner = libxl_sigchld_owner_mainloop};

void daemon_open(struct daemon *daemon, const char *name, const char *store, enum children children)
{
    memset(daemon, 0, sizeof(*daemon));
    daemon->name = name;
    daemon->thread = pthread_self();
    daemon->child_fd = children == WE_REAP ? catch_sigchld() : -1;
    daemon->logger = logger_new(name);
    EXPECT_RC(libxl_ctx_alloc(&daemon->ctx, LIBXL_VERSION, 0, &daemon->logger->vtable), 0,
              "libxl_ctx_alloc");
    if (children == WE_REAP)
        libxl_childproc_setmode(daemon->ctx, &we_reap, NULL);
    if (store)
        EXPECT_RC(libxl_ext_set_store(daemon->ctx, store), 0, "libxl_ext_set_store");
    daemon->ext_fd = libxl_ext_event_fd(daemon->ctx);
    EXPECT(daemon->ext_fd >= 0, "%s", rc_name(daemon->ext_fd));
}

void daemon_close(struct daemon *daemon)
{
    EXPECT(!daemon->operations, "%s is under way", daemon->operations->what);
    EXPECT(libxl_ext_event_fd(daemon->ctx) == daemon->ext_fd, "it is to stay the same");
    if (daemon->death)
        libxl_evdisable_domain_death(daemon->ctx, daemon->death);
    /* libxl-ext has to forget the ctx before it is freed. */
    libxl_ext_ctx_release(daemon->ctx);
    libxl_ctx_free(daemon->ctx);
    logger_free(daemon->logger);
    free(daemon->fds);
}

uint32_t daemon_watch(struct daemon *daemon, const char *domain)
{
    uint32_t domid;

    EXPECT_RC(libxl_name_to_domid(daemon->ctx, domain, &domid), 0, "libxl_name_to_domid");
    if (daemon->death)
        libxl_evdisable_domain_death(daemon->ctx, daemon->death);
    daemon->death = NULL;
    EXPECT_RC(libxl_evenable_domain_death(daemon->ctx, domid, domid, &daemon->death), 0,
              "libxl_evenable_domain_death");
    return domid;
}

/* Operations
 * ========== */

/* Callbacks come on the thread that runs the loop, while it asks for them, and never otherwise. */
static void expect_called_back_in_the_loop(const struct operation *operation)
{
    const struct daemon *daemon = operation->daemon;

    EXPECT(pthread_equal(pthread_self(), daemon->thread), "%s called back on another thread",
           operation->what);
    EXPECT(daemon->in_check || operation->form == BLOCKING, "%s called back unasked",
           operation->what);
}

static void report(struct operation *operation, const libxl_ext_event *event)
{
    const char *step = event->u.operation_progress.step;
    uint64_t done = event->u.operation_progress.done;
    uint64_t total = event->u.operation_progress.total;

    EXPECT(event->type == LIBXL_EXT_EVENT_TYPE_OPERATION_PROGRESS, "type %d", event->type);
    EXPECT(!operation->complete, "%s reported after its end", operation->what);
    EXPECT(step && *step, "%s reported no words", operation->what);
    EXPECT(total == 0 || done <= total, "%s reported more than all", operation->what);
    say(operation->daemon->name, "%s: %s, %" PRIu64 " of %" PRIu64 "%s", operation->what, step, done,
        total, event->u.operation_progress.bytes ? " bytes" : "");
    operation->reports++;
    operation->daemon->heard++;
    if (operation->on_report)
        operation->on_report(operation, event);
}

static void complete(struct operation *operation, int rc)
{
    EXPECT(!operation->complete, "%s ended twice", operation->what);
    say(operation->daemon->name, "%s: ended with %s", operation->what, rc_name(rc));
    operation->daemon->heard++;
    operation->complete = true;
    operation->rc = rc;
    operation_forget(operation);
}

static void on_progress(libxl_ctx *ctx, const libxl_ext_event *event, void *for_callback)
{
    struct operation *operation = for_callback;

    EXPECT(ctx == operation->daemon->ctx, "called back with another ctx");
    EXPECT(event->for_user == (uintptr_t)operation, "%s: another's for_event", operation->what);
    expect_called_back_in_the_loop(operation);
    report(operation, event);
}

static void on_completion(libxl_ctx *ctx, int rc, void *for_callback)
{
    struct operation *operation = for_callback;

    EXPECT(ctx == operation->daemon->ctx, "called back with another ctx");
    expect_called_back_in_the_loop(operation);
    complete(operation, rc);
}

void operation_prepare(struct operation *operation, struct daemon *daemon, const char *what,
                       enum form form)
{
    memset(operation, 0, sizeof(*operation));
    operation->daemon = daemon;
    operation->what = what;
    operation->form = form;

    /* for_user finds the operation when an event comes. */
    if (form == CALLBACKS || form == MIXED) {
        operation->how.callback = on_completion;
        operation->how.u.for_callback = operation;
    } else {
        operation->how.u.for_event = (uintptr_t)operation;
    }
    operation->ao = form == BLOCKING ? NULL : &operation->how;

    operation->progress_how.for_event = (uintptr_t)operation;
    if (form == CALLBACKS || form == BLOCKING) {
        operation->progress_how.callback = on_progress;
        operation->progress_how.for_callback = operation;
    }
    operation->progress = &operation->progress_how;

    operation->next = daemon->operations;
    daemon->operations = operation;
}

void operation_forget(struct operation *operation)
{
    struct operation **link = &operation->daemon->operations;

    while (*link && *link != operation)
        link = &(*link)->next;
    if (*link)
        *link = operation->next;
}

int operation_finish(struct operation *operation, int rc)
{
    time_t end = time(NULL) + LIMIT;

    if (operation->form == BLOCKING || rc) {
        /* An operation that was not started is not heard of, which expect_quiet shows. */
        EXPECT(!operation->complete, "%s called back though it was not started", operation->what);
        say(operation->daemon->name, "%s: returned %s", operation->what, rc_name(rc));
        operation_forget(operation);
        return rc;
    }
    while (!operation->complete) {
        EXPECT(time(NULL) < end, "%s does not end", operation->what);
        daemon_turn(operation->daemon, 1000);
    }
    return operation->rc;
}

void operation_wait_report(struct operation *operation, int rc)
{
    unsigned int reports = operation->reports;
    time_t end = time(NULL) + LIMIT;

    EXPECT_RC(rc, 0, operation->what);
    while (operation->reports == reports) {
        EXPECT(!operation->complete, "%s ended with %s, without a report", operation->what,
               rc_name(operation->rc));
        EXPECT(time(NULL) < end, "%s does not report", operation->what);
        daemon_turn(operation->daemon, 1000);
    }
}

/* The loop
 * ======== */

static void handle_libxl_event(struct daemon *daemon, const libxl_event *event)
{
    say(daemon->name, "libxl: %s of domain %" PRIu32, libxl_event_type_to_string(event->type),
        event->domid);
    if (event->type == LIBXL_EVENT_TYPE_DOMAIN_DEATH)
        daemon->deaths++;
}

static void handle_ext_event(struct daemon *daemon, const libxl_ext_event *event)
{
    struct operation *operation = daemon->operations;

    while (operation && (uintptr_t)operation != event->for_user)
        operation = operation->next;
    EXPECT(operation, "an event came for %#" PRIx64 ", which is not under way", event->for_user);

    switch (event->type) {
    case LIBXL_EXT_EVENT_TYPE_OPERATION_PROGRESS:
        EXPECT(operation->form == EVENTS || operation->form == MIXED, "%s wanted callbacks",
               operation->what);
        report(operation, event);
        return;
    case LIBXL_EXT_EVENT_TYPE_OPERATION_COMPLETE:
        EXPECT(operation->form == EVENTS, "%s wanted a callback", operation->what);
        complete(operation, event->u.operation_complete.rc);
        return;
    case LIBXL_EXT_EVENT_TYPE_BLOCK_PULL:
        /* Whoever asks for one here gives a callback. */
        break;
    }
    EXPECT(false, "event of type %d", event->type);
}

static void take_libxl_events(struct daemon *daemon)
{
    libxl_event *event;
    int rc;

    while (!(rc = libxl_event_check(daemon->ctx, &event, LIBXL_EVENTMASK_ALL, NULL, NULL))) {
        handle_libxl_event(daemon, event);
        libxl_event_free(daemon->ctx, event);
    }
    EXPECT_RC(rc, ERROR_NOT_READY, "libxl_event_check");
}

/* The same for libxl-ext. Its callbacks are made by libxl_ext_event_check. */
static void take_ext_events(struct daemon *daemon)
{
    for (;;) {
        libxl_ext_event *event;

        daemon->in_check = true;
        int rc = libxl_ext_event_check(daemon->ctx, &event);
        daemon->in_check = false;
        if (rc == ERROR_NOT_READY)
            return;
        EXPECT_RC(rc, 0, "libxl_ext_event_check");
        handle_ext_event(daemon, event);
        libxl_ext_event_free(daemon->ctx, event);
    }
}

/* Fills daemon->fds from `own` on with what libxl wants to wait for, and says how many that are. */
static int before_poll(struct daemon *daemon, int own, int *timeout_ms)
{
    for (;;) {
        struct timeval now;
        int theirs = daemon->room > own ? daemon->room - own : 0;

        gettimeofday(&now, NULL);
        int rc = libxl_osevent_beforepoll(daemon->ctx, &theirs,
                                          daemon->fds ? daemon->fds + own : NULL, timeout_ms, now);
        if (rc == 0 && daemon->fds)
            return theirs;
        EXPECT(rc == 0 || rc == ERROR_BUFFERFULL, "libxl_osevent_beforepoll: %s", rc_name(rc));
        daemon->room = own + theirs;
        daemon->fds = realloc(daemon->fds, (size_t)daemon->room * sizeof(*daemon->fds));
        EXPECT(daemon->fds, "no memory");
    }
}

void daemon_turn(struct daemon *daemon, int timeout_ms)
{
    enum { EXT, CHILD, OWN };
    int theirs = before_poll(daemon, OWN, &timeout_ms);
    struct pollfd *fds = daemon->fds;
    struct timeval now;

    fds[EXT] = (struct pollfd){.fd = daemon->ext_fd, .events = POLLIN};
    /* poll skips a negative one. */
    fds[CHILD] = (struct pollfd){.fd = daemon->child_fd, .events = POLLIN};
    if (poll(fds, (nfds_t)(OWN + theirs), timeout_ms) < 0) {
        EXPECT(errno == EINTR, "poll: %s", strerror(errno));
        return;
    }

    gettimeofday(&now, NULL);
    libxl_osevent_afterpoll(daemon->ctx, theirs, fds + OWN, now);
    if (fds[CHILD].revents)
        reap(daemon);
    take_libxl_events(daemon);
    if (fds[EXT].revents) {
        unsigned int heard = daemon->heard;

        EXPECT(fds[EXT].revents == POLLIN, "poll reports %#x of libxl_ext_event_fd",
               (unsigned int)fds[EXT].revents);
        take_ext_events(daemon);
        /* What goes to the logger is work too, so some turns may bring nothing. */
        daemon->idle = daemon->heard == heard ? daemon->idle + 1 : 0;
        EXPECT(daemon->idle < 10000, "libxl_ext_event_fd stays readable");
    }
}

/*
 * What libxl-ext promises about processes: to a program with threads, with children of its own, that forks,
 * that ends in the middle, and whose operation's process ends in the middle.
 */
#include "daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Threads
 * ======= */

struct worker {
    const struct arguments *arguments;
    const char *domain;
    pthread_t thread;
};

/* A daemon per thread: its own ctx, its own loop. */
static void *snapshot_in_a_thread(void *data)
{
    struct worker *worker = data;
    struct daemon daemon;
    struct operation operation;

    daemon_open(&daemon, worker->domain, worker->arguments->store, LIBXL_REAPS);
    for (int round = 0; round < 2; round++) {
        operation_prepare(&operation, &daemon, "create", round ? EVENTS : CALLBACKS);
        EXPECT_RC(create(&operation, worker->domain, "threaded"), 0, "create");
        expect_snapshots(&daemon, worker->domain, "threaded");
        operation_prepare(&operation, &daemon, "delete", BLOCKING);
        int rc = libxl_domain_snapshot_delete(daemon.ctx, worker->domain, "threaded", 0, operation.ao,
                                              operation.progress);
        EXPECT_RC(operation_finish(&operation, rc), 0, "delete");
    }
    expect_snapshots(&daemon, worker->domain, "");
    daemon_close(&daemon);
    return NULL;
}

/* Several threads may also use the same ctx. */
struct lister {
    struct daemon *daemon;
    const char *domain;
    pthread_t thread;
    unsigned int lists;
};

static pthread_mutex_t working_mutex = PTHREAD_MUTEX_INITIALIZER;
static bool working = true;

static bool is_working(void)
{
    pthread_mutex_lock(&working_mutex);
    bool is = working;
    pthread_mutex_unlock(&working_mutex);
    return is;
}

static void *list_in_a_thread(void *data)
{
    struct lister *lister = data;

    do {
        libxl_domain_snapshot *snapshots;
        int count;

        EXPECT_RC(libxl_domain_snapshot_list(lister->daemon->ctx, lister->domain, &snapshots, &count), 0,
                  "list");
        EXPECT(count == 0 || (count == 1 && strcmp(snapshots[0].name, "threaded") == 0),
               "%d snapshots", count);
        libxl_domain_snapshot_list_free(snapshots, count);
        lister->lists++;
    } while (is_working());
    return NULL;
}

static void run_threads(const struct arguments *arguments)
{
    struct worker workers[] = {{.domain = arguments->domain}, {.domain = arguments->other}};
    struct lister listers[] = {{.domain = arguments->domain}, {.domain = arguments->other}};
    struct daemon daemon;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    for (int i = 0; i < 2; i++) {
        workers[i].arguments = arguments;
        listers[i].daemon = &daemon;
        EXPECT(!pthread_create(&workers[i].thread, NULL, snapshot_in_a_thread, &workers[i]),
               "no thread");
        EXPECT(!pthread_create(&listers[i].thread, NULL, list_in_a_thread, &listers[i]), "no thread");
    }
    for (int i = 0; i < 2; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_mutex_lock(&working_mutex);
    working = false;
    pthread_mutex_unlock(&working_mutex);
    for (int i = 0; i < 2; i++) {
        pthread_join(listers[i].thread, NULL);
        say("main", "%s was listed %u times meanwhile", listers[i].domain, listers[i].lists);
    }
    expect_quiet(&daemon);
    daemon_close(&daemon);
}

/* Children
 * ======== */

/* Starts a child that ends with `status` after some time. */
static void start_child(struct daemon *daemon, int status, unsigned int milliseconds)
{
    pid_t pid = fork();

    EXPECT(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        struct timespec time = {.tv_sec = milliseconds / 1000,
                                .tv_nsec = (long)(milliseconds % 1000) * 1000000};

        nanosleep(&time, NULL);
        _exit(status);
    }
    daemon->child = pid;
}

static void wait_for_child(struct daemon *daemon, int status)
{
    time_t end = time(NULL) + LIMIT;

    while (daemon->child) {
        EXPECT(time(NULL) < end, "child %d does not end", (int)daemon->child);
        daemon_turn(daemon, 1000);
    }
    EXPECT(WIFEXITED(daemon->child_status) && WEXITSTATUS(daemon->child_status) == status,
           "it ended with %#x", (unsigned int)daemon->child_status);
}

/* No child is there, neither running nor to be reaped. Reaps none. */
static void expect_no_children(void)
{
    siginfo_t info = {0};

    EXPECT(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == -1 && errno == ECHILD,
           "there is a child, %d", (int)info.si_pid);
}

/* The program owns SIGCHLD and waits for all children, in its loop: libxl-ext must add none, and take
 * none away, whether it is called to wait or not. */
static void run_sigchld(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;

    daemon_open(&daemon, "main", arguments->store, WE_REAP);
    operation_prepare(&operation, &daemon, "create", EVENTS);
    start_child(&daemon, 7, 1500);
    EXPECT_RC(create(&operation, arguments->domain, "sigchld"), 0, "create");
    wait_for_child(&daemon, 7);
    expect_no_children();
    EXPECT(sigchld_count() == 1, "SIGCHLD came %u times for one child", sigchld_count());

    /* Without a loop it stays to be reaped until there is one again. */
    start_child(&daemon, 5, 0);
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "sigchld", 0, NULL, NULL), 0,
              "delete");
    expect_snapshots(&daemon, arguments->domain, "");
    EXPECT(daemon.child, "it was reaped, but not by the loop");
    wait_for_child(&daemon, 5);
    expect_no_children();
    EXPECT(sigchld_count() == 2, "SIGCHLD came %u times for two children", sigchld_count());
    daemon_close(&daemon);
}

static void look_for_children(struct operation *operation, const libxl_ext_event *event)
{
    (void)operation;
    (void)event;
    expect_no_children();
}

/* libxl owns SIGCHLD, its default, and reaps whatever ends. A child that it does not know it reports to
 * the logger. */
static void run_sigchld_libxl(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    struct sigaction action;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    /* While events are wanted, libxl may have children. */
    daemon_watch(&daemon, arguments->domain);
    operation_prepare(&operation, &daemon, "create", CALLBACKS);
    operation.on_report = look_for_children;
    EXPECT_RC(create(&operation, arguments->domain, "sigchld"), 0, "create");
    expect_no_children();
    operation_prepare(&operation, &daemon, "delete", BLOCKING);
    operation.on_report = look_for_children;
    int rc = libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "sigchld", 0, operation.ao,
                                          operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "delete");
    expect_no_children();
    EXPECT(!logger_has(daemon.logger, ""), "there was something to complain of");
    libxl_evdisable_domain_death(daemon.ctx, daemon.death);
    daemon.death = NULL;
    EXPECT(sigaction(SIGCHLD, NULL, &action) == 0 && action.sa_handler == SIG_DFL,
           "a handler was left behind");
    daemon_close(&daemon);
}

/* A child that goes on
 * ==================== */

/* The child is done with its parent's ctx, and has one of its own. */
static _Noreturn void go_on_as_child(const struct arguments *arguments, libxl_ctx *of_the_parent)
{
    struct daemon daemon;

    /* What libxl demands of a child that does not execute a program. */
    libxl_postfork_child_noexec(of_the_parent);
    daemon_open(&daemon, "child", arguments->store, LIBXL_REAPS);
    expect_snapshots(&daemon, arguments->domain, "first");
    expect_quiet(&daemon);
    daemon_close(&daemon);
    _exit(3);
}

static void run_fork(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    libxl_domain_snapshot snapshot;

    daemon_open(&daemon, "main", arguments->store, WE_REAP);
    operation_prepare(&operation, &daemon, "create first", BLOCKING);
    EXPECT_RC(create(&operation, arguments->domain, "first"), 0, "create first");

    libxl_domain_snapshot_init(&snapshot);
    snapshot.name = strdup("second");
    operation_prepare(&operation, &daemon, "create second", EVENTS);
    operation_wait_report(&operation,
                          libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0,
                                                       operation.ao, operation.progress));
    daemon.child = fork();
    EXPECT(daemon.child >= 0, "fork: %s", strerror(errno));
    if (daemon.child == 0)
        go_on_as_child(arguments, daemon.ctx);
    /* The end of the child is not the parent's: the operation goes on. */
    wait_for_child(&daemon, 3);
    EXPECT_RC(operation_finish(&operation, 0), 0, "create second");
    libxl_domain_snapshot_dispose(&snapshot);
    expect_snapshots(&daemon, arguments->domain, "first second");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "second", 0, NULL, NULL), 0,
              "delete");
    EXPECT_RC(libxl_domain_snapshot_delete(daemon.ctx, arguments->domain, "first", 0, NULL, NULL), 0,
              "delete");
    expect_no_children();
    daemon_close(&daemon);
}

/* Ends in the middle
 * ================== */

/* The program ends, and a child of it, which has copies of all that it had open, does not yet. What is left of
 * the operation is looked at from outside. */
static void run_leave(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    libxl_domain_snapshot snapshot;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    libxl_domain_snapshot_init(&snapshot);
    operation_prepare(&operation, &daemon, "create", EVENTS);
    int rc = libxl_domain_snapshot_create(daemon.ctx, arguments->domain, &snapshot, 0, operation.ao,
                                          operation.progress);
    operation_wait_report(&operation, rc);
    pid_t child = fork();
    EXPECT(child >= 0, "fork: %s", strerror(errno));
    if (child == 0) {
        /* Whoever reads our output is not to wait for this one. */
        close(STDIN_FILENO);
        close(STDOUT_FILENO);
        close(STDERR_FILENO);
        sleep(LIMIT);
        _exit(0);
    }
    say("main", "leaves in the middle, and leaves child %d", (int)child);
    _exit(0);
}

/* Somebody kills the process of the operation, until which this waits. */
static void run_killed(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    operation_prepare(&operation, &daemon, "create", CALLBACKS);
    EXPECT_RC(create(&operation, arguments->domain, "killed"), ERROR_FAIL, "create");
    EXPECT(logger_has(daemon.logger, ""), "nothing was said about it");
    EXPECT_RC(libxl_ext_ao_abort(daemon.ctx, &operation.how), ERROR_NOTFOUND, "abort after the end");
    /* The next call takes back what was begun. */
    expect_snapshots(&daemon, arguments->domain, "");
    expect_quiet(&daemon);
    daemon_close(&daemon);
}

const struct scenario process_scenarios[] = {
    {"threads", "two threads with a ctx each, and two that share one", 2, run_threads},
    {"sigchld", "we own SIGCHLD and reap all children", 1, run_sigchld},
    {"sigchld-libxl", "libxl owns SIGCHLD, which is its default", 1, run_sigchld_libxl},
    {"fork", "a child that goes on, in the middle of an operation", 1, run_fork},
    {"leave", "end in the middle of an operation", 1, run_leave},
    {"killed", "wait until somebody kills the process of an operation", 1, run_killed},
    {NULL, NULL, 0, NULL},
};

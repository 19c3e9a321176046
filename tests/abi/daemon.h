/*
 * A small toolstack daemon, and the checks that it is put through.
 *
 * daemon.c     the event loop: what a program has to do to use libxl-ext beside libxl. Begin there.
 * logger.c     a logger of its own, which keeps what it is told
 * scenarios.c  what each call does, seen from the loop
 * managed.c    the same of saved domains
 * pull.c       the same of pulls
 * processes.c  the same with threads, children, signals and deaths
 * main.c       the command line
 */
#ifndef DAEMON_H
#define DAEMON_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include <libxl.h>
#include <libxl_ext.h>

/* What is checked, and what is said
 * ================================= */

/* Says that something is not as it should be, and ends the program with status 1. */
_Noreturn void differs(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define EXPECT(condition, ...)                                            \
    do {                                                                  \
        if (!(condition))                                                 \
            differs(__FILE__, __LINE__, #condition, __VA_ARGS__);         \
    } while (0)

/* A call ended with rc; it should have ended with `wanted`. */
#define EXPECT_RC(rc, wanted, what) expect_rc(__FILE__, __LINE__, (rc), (wanted), (what))
void expect_rc(const char *file, int line, int rc, int wanted, const char *what);

/* One line for the reader. */
void say(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The name of an ERROR_*, and "0" for 0. */
const char *rc_name(int rc);

/* The logger
 * ========== */

struct logger {
    xentoollog_logger vtable; /* first, so that a pointer to it is one to the whole */
    pthread_mutex_t mutex;
    const char *name;
    char **lines;
    size_t count;
};

struct logger *logger_new(const char *name);
void logger_free(struct logger *logger);
/* Whether an error was logged that contains `text`. */
bool logger_has_error(struct logger *logger, const char *text);
/* Whether any line of the level of a warning or above contains `text`. */
bool logger_has(struct logger *logger, const char *text);
void logger_clear(struct logger *logger);

/* The daemon
 * ========== */

/* The most that anything may take, in seconds: a save under an emulated CPU and valgrind, and some. */
enum { LIMIT = 400 };

/* Who gets SIGCHLD; see libxl_event.h, "Subprocess handling". */
enum children { LIBXL_REAPS, WE_REAP };

struct daemon {
    const char *name;
    struct logger *logger;
    libxl_ctx *ctx;
    pthread_t thread;               /* the one that runs the loop */
    int ext_fd;                     /* of libxl_ext_event_fd */
    int child_fd;                   /* readable after a SIGCHLD; -1 where libxl reaps */
    bool in_check;                  /* libxl_ext_event_check is being called */
    unsigned int heard;             /* reports and ends of operations */
    unsigned int idle;              /* how often in a row the fd was readable and nothing was heard */
    struct operation *operations;   /* those that are under way */
    struct pollfd *fds;
    int room;
    libxl_evgen_domain_death *death;
    unsigned int deaths;            /* of the domain that is watched */
    pid_t child;                    /* our own, 0 if there is none */
    int child_status;
};

/* `store`: where the snapshots are, NULL for the usual place. */
void daemon_open(struct daemon *daemon, const char *name, const char *store,
                 enum children children);
void daemon_close(struct daemon *daemon);
/* One turn of the loop: waits until something happens and handles all of it. */
void daemon_turn(struct daemon *daemon, int timeout_ms);
/* Events of the death of this domain are wanted. Returns its domid. */
uint32_t daemon_watch(struct daemon *daemon, const char *domain);

/* How often SIGCHLD came since the first daemon that reaps was opened. */
unsigned int sigchld_count(void);

/* Operations
 * ========== */

/* How a caller wants to hear of an operation. */
enum form {
    EVENTS,     /* progress and completion are events */
    CALLBACKS,  /* both are callbacks */
    MIXED,      /* progress is an event, completion a callback */
    BLOCKING,   /* the call waits; progress is a callback */
};

struct operation {
    struct daemon *daemon;
    const char *what;
    enum form form;
    bool complete;
    int rc;                         /* valid if complete */
    unsigned int reports;
    /* Called with each report, if not NULL. */
    void (*on_report)(struct operation *operation, const libxl_ext_event *event);
    void *for_on_report;
    /* What the library is given; ao is NULL for a call that is to wait. */
    const libxl_asyncop_how *ao;
    const libxl_ext_asyncprogress_how *progress;
    libxl_asyncop_how how;
    libxl_ext_asyncprogress_how progress_how;
    struct operation *next;
};

void operation_prepare(struct operation *operation, struct daemon *daemon, const char *what,
                       enum form form);
/* Runs the loop until the operation, whose call returned rc, has ended. Returns its result. */
int operation_finish(struct operation *operation, int rc);
/* Runs the loop until there is a report. The operation must not have ended by then. */
void operation_wait_report(struct operation *operation, int rc);
/* Takes an operation off the list, which will not be heard of any more. */
void operation_forget(struct operation *operation);

/* Scenarios
 * ========= */

struct arguments {
    const char *store;
    const char *domain;
    const char *other; /* the second domain */
};

struct scenario {
    const char *name;
    const char *what;
    int domains;
    void (*run)(const struct arguments *arguments);
};

extern const struct scenario scenarios[];
extern const struct scenario managed_scenarios[];
extern const struct scenario pull_scenarios[];
extern const struct scenario process_scenarios[];

/* Creates a snapshot and returns the result. */
int create(struct operation *operation, const char *domain, const char *name);
/* The domain has these snapshots, separated by blanks, in this order. */
void expect_snapshots(struct daemon *daemon, const char *domain, const char *names);
/* Nothing is queued, nothing is under way. */
void expect_quiet(struct daemon *daemon);

#endif

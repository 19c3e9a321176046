/*
 * Saved domains, seen from the loop.
 */
#include "daemon.h"

#include <libxl_utils.h>
#include <string.h>

/* Any bit, in any of the calls. */
static void expect_no_flags(struct daemon *daemon, const char *domain)
{
    uint32_t domid = 12345;

    for (int bit = 0; bit < 32; bit++) {
        unsigned int flags = 1u << bit;

        EXPECT_RC(libxl_domain_managed_save(daemon->ctx, domain, flags, NULL, NULL), ERROR_INVAL,
                  "save with a flag");
        EXPECT_RC(libxl_domain_has_managed_save_image(daemon->ctx, domain, flags), ERROR_INVAL,
                  "has with a flag");
        EXPECT_RC(libxl_domain_managed_save_remove(daemon->ctx, domain, flags, NULL, NULL),
                  ERROR_INVAL, "remove with a flag");
        EXPECT_RC(libxl_domain_managed_start(daemon->ctx, domain, &domid, flags, NULL, NULL),
                  ERROR_INVAL, "start with a flag");
        EXPECT(logger_has_error(daemon->logger, "flag"), "the refusal does not name the flag");
        logger_clear(daemon->logger);
    }
    EXPECT(domid == 12345, "a call that was refused wrote a domid");
    EXPECT_RC(libxl_domain_managed_start(daemon->ctx, domain, NULL, 0, NULL, NULL), ERROR_INVAL,
              "start without a place for the domid");
    EXPECT_RC(libxl_domain_has_managed_save_image(daemon->ctx, NULL, 0), ERROR_INVAL,
              "has without a name");
    logger_clear(daemon->logger);
}

/* Nothing was saved, so the application boots the domain. */
static void expect_none(struct daemon *daemon, const char *domain)
{
    uint32_t domid = 12345;
    int rc;

    EXPECT_RC(libxl_domain_has_managed_save_image(daemon->ctx, domain, 0), 0, "has");
    rc = libxl_domain_managed_start(daemon->ctx, domain, &domid, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_NOTFOUND, "start of what was not saved");
    rc = libxl_domain_managed_save_remove(daemon->ctx, domain, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_NOTFOUND, "remove of what was not saved");
    EXPECT(domid == 12345, "a call that failed wrote a domid");
    EXPECT(logger_has_error(daemon->logger, "was not saved"), "the refusal says nothing");
    logger_clear(daemon->logger);
}

static void abort_at_once(struct operation *operation, const libxl_ext_event *event)
{
    (void)event;
    if (operation->reports == 1)
        EXPECT_RC(libxl_ext_ao_abort(operation->daemon->ctx, &operation->how), 0, "abort");
}

static void run_managed(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    const char *domain = arguments->domain;
    uint32_t domid, started = 0;
    int rc;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    expect_no_flags(&daemon, domain);
    expect_none(&daemon, domain);
    EXPECT_RC(libxl_domain_has_managed_save_image(daemon.ctx, "no-such-domain", 0), 0,
              "has of a name that nobody knows");
    rc = libxl_domain_managed_save(daemon.ctx, "no-such-domain", 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_DOMAIN_NOTFOUND, "save of a name that nobody knows");
    rc = libxl_domain_managed_start(daemon.ctx, "no-such-domain", &started, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_DOMAIN_NOTFOUND, "start of a name that nobody knows");
    logger_clear(daemon.logger);

    operation_prepare(&operation, &daemon, "save that is aborted", CALLBACKS);
    operation.on_report = abort_at_once;
    rc = libxl_domain_managed_save(daemon.ctx, domain, 0, operation.ao, operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), ERROR_ABORTED, "save that is aborted");
    expect_none(&daemon, domain);
    EXPECT_RC(libxl_name_to_domid(daemon.ctx, domain, &domid), 0, "the domain is gone");

    operation_prepare(&operation, &daemon, "save", EVENTS);
    rc = libxl_domain_managed_save(daemon.ctx, domain, 0, operation.ao, operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "save");
    EXPECT(operation.reports > 0, "no progress was reported");
    EXPECT(libxl_name_to_domid(daemon.ctx, domain, &domid), "it is domain %u", domid);
    EXPECT_RC(libxl_domain_has_managed_save_image(daemon.ctx, domain, 0), 1, "has");
    rc = libxl_domain_managed_save(daemon.ctx, domain, 0, NULL, NULL);
    EXPECT_RC(rc, ERROR_NOT_READY, "save of a domain that is off");
    logger_clear(daemon.logger);

    operation_prepare(&operation, &daemon, "start", MIXED);
    rc = libxl_domain_managed_start(daemon.ctx, domain, &started, 0, operation.ao,
                                    operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "start");
    EXPECT(operation.reports > 0, "no progress was reported");
    EXPECT_RC(libxl_name_to_domid(daemon.ctx, domain, &domid), 0, "libxl_name_to_domid");
    EXPECT(started == domid, "it is domain %u, and %u was said", domid, started);
    expect_none(&daemon, domain);
    expect_quiet(&daemon);
    daemon_close(&daemon);
}

/* The domain is off afterwards. */
static void run_managed_remove(const struct arguments *arguments)
{
    struct daemon daemon;
    struct operation operation;
    const char *domain = arguments->domain;
    int rc;

    daemon_open(&daemon, "main", arguments->store, LIBXL_REAPS);
    operation_prepare(&operation, &daemon, "save", BLOCKING);
    rc = libxl_domain_managed_save(daemon.ctx, domain, 0, operation.ao, operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "save");
    operation_prepare(&operation, &daemon, "remove", EVENTS);
    rc = libxl_domain_managed_save_remove(daemon.ctx, domain, 0, operation.ao, operation.progress);
    EXPECT_RC(operation_finish(&operation, rc), 0, "remove");
    expect_none(&daemon, domain);
    daemon_close(&daemon);
}

const struct scenario managed_scenarios[] = {
    {"managed", "save and start of a domain", 1, run_managed},
    {"managed-remove", "save of a domain, and remove", 1, run_managed_remove},
    {NULL, NULL, 0, NULL},
};

/*
 * A ctx where there is no Xen.
 *
 * libxl_ctx_alloc opens the hypervisor and xenstore, which fails here. But what prints, parses and copies
 * values needs neither: of the ctx it uses the logger, and the mark that the memory which it returns is
 * the caller's. So this program has functions of its own that open and close nothing, which take the
 * places of those in the libraries. The rest of the ctx is a real one: a block of zeros with a logger
 * would do for the first lines of libxl only, as it takes the mark's absence for a list of all memory
 * that it shall free in the end.
 */
#include <libxl.h>
#include <stdio.h>
#include <stdlib.h>
#include <xenctrl.h>
#include <xenstore.h>

libxl_ctx *test_ctx_alloc(void);
void test_ctx_free(libxl_ctx *ctx);

static int nothing;
static xentoollog_logger_stdiostream *logger;

xc_interface *xc_interface_open(xentoollog_logger *lg, xentoollog_logger *dombuild_lg,
                                unsigned open_flags)
{
    (void)lg, (void)dombuild_lg, (void)open_flags;
    return (xc_interface *)&nothing;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

struct xs_handle *xs_open(unsigned long flags)
{
    (void)flags;
    return (struct xs_handle *)&nothing;
}

void xs_close(struct xs_handle *xsh)
{
    (void)xsh;
}

libxl_ctx *test_ctx_alloc(void)
{
    libxl_ctx *ctx;

    /* The test gives wrong texts on purpose, and libxl tells each time. */
    logger = xtl_createlogger_stdiostream(stderr, XTL_CRITICAL, 0);
    if (!logger || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, (xentoollog_logger *)logger)) {
        fprintf(stderr, "there is no ctx\n");
        exit(1);
    }
    return ctx;
}

void test_ctx_free(libxl_ctx *ctx)
{
    libxl_ctx_free(ctx);
    xtl_logger_destroy((xentoollog_logger *)logger);
}

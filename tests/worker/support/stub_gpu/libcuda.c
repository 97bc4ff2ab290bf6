/* A CUDA driver of a host that the files in STUB_FOLDER describe: `devices` are there, each with free_mb free. A process that
   looks at one twice finds taken_mb less; what the files elsewhere_mb_0, elsewhere_mb_1 hold is taken for all processes.
   The file `contexts` gets a line for each context that a process makes or resets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES_MAX 4

static int has_context[DEVICES_MAX], was_read[DEVICES_MAX], current;

static size_t number_in(const char *name) {
    char path[4096];
    size_t number = 0;
    snprintf(path, sizeof path, "%s/%s", getenv("STUB_FOLDER"), name);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        fscanf(file, "%zu", &number);
        fclose(file);
    }
    return number;
}

static size_t bytes_in(const char *name) { return number_in(name) * 1000000; }

static void tell(const char *what, int device) {
    char path[4096];
    snprintf(path, sizeof path, "%s/contexts", getenv("STUB_FOLDER"));
    FILE *file = fopen(path, "a");
    fprintf(file, "%s %d %d\n", what, device, (int)getpid());
    fclose(file);
}

int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return bytes_in("free_mb") == 0 || (visible != NULL && *visible == 0) ? 100 : 0;
}
int cuDeviceGetCount(int *count) { *count = number_in("devices"); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index < number_in("devices") ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stub 1", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (number_in("no_context"))
        return number_in("no_context");
    if (!has_context[device]++)
        tell("made", device);
    *context = (void *)(long)(device + 1);
    return 0;
}
int cuDevicePrimaryCtxReset_v2(int device) {
    if (number_in("no_reset"))
        return 999;
    has_context[device] = 0;
    tell("reset", device);
    return 0;
}
int cuCtxSetCurrent(void *context) { current = (int)(long)context - 1; return context == NULL; }
int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags) { return memory == NULL || bytes == 0; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    char elsewhere[32];
    snprintf(elsewhere, sizeof elsewhere, "elsewhere_mb_%d", current);
    *total_bytes = 2 * bytes_in("free_mb");
    *free_bytes = bytes_in("free_mb") - bytes_in(elsewhere) - (was_read[current]++ ? bytes_in("taken_mb") : 0);
    return 0;
}
